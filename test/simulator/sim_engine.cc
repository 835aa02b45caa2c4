#include "test/simulator/sim_engine.h"

#include <sys/mman.h>

#include "common/check.h"

namespace kvferry::simulator {
namespace {

// Far from where the system puts things, with and without address sanitizer. Pages cost memory once they are touched.
std::byte* arena() {
  static std::byte* const base = [] {
    void* const wanted = reinterpret_cast<void*>(0x2000'0000'0000);
    void* const got = ::mmap(wanted, SimEngine::kMemory * SimEngine::kMaxHosts, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    KVF_CHECK(got == wanted);
    return static_cast<std::byte*>(got);
  }();
  return base;
}

// Clocks of different machines have nothing to do with each other (I3: times never cross the wire).
Duration draw_offset(Random& random) {
  return std::chrono::milliseconds(static_cast<int64_t>(random.below(1'000'000'000)));
}

EngineConfig make_config(const SimEngine& engine, const SimEngine::Fittings& fittings, std::shared_ptr<Logger> logger) {
  EngineConfig config;
  config.engine_id = engine.name();
  config.listen = engine.address().to_string();
  config.fabrics = {"tcp"};
  if (fittings.hub) config.fabrics = {"loopback", "tcp"};
  config.loopback = fittings.hub;
  config.staging_bytes = fittings.staging_bytes;
  config.logger = std::move(logger);
  return config;
}

}  // namespace

SimEngine::Process::Process(SimEngine& engine, uint64_t seed)
    : random(seed),
      loop(engine.timeline_, random, draw_offset(random), [&engine] { engine.hooks_.after_turn(engine); }),
      network(engine.wires_, engine.host_, loop),
      config(make_config(engine, engine.fittings_, engine.history_.logger(engine.name_))),
      notifications(config.max_notifications, config.max_notification_bytes) {
  auto made = GateWords::create();
  KVF_CHECK(made.ok());
  words = std::move(*made);
  MemoryKinds kinds;
  kinds.add(make_host_memory());
  kinds.add(device);
  registry = std::make_unique<Registry>(std::move(kinds), *words, config.max_regions, 1 + (random.next() >> 2));
  core = std::make_unique<EngineCore>(
      EngineCore::Parts{loop, network, random, clock, *words, *registry, hub, notifications, nullptr,
                        [this](Task task) { loop.defer(std::move(task)); }, metrics, config.logger,
                        HostIdentity{engine.name_, 1, 1, 1}},
      config);
  ParcelLimits limits;
  limits.longest_lease = kLongestLease;
  parcel_owner = std::make_unique<ParcelOwner>(
      ParcelOwner::Parts{loop, *words, *registry, core->lanes(), random, metrics, parcel_events}, limits);
  parcel_reader = std::make_unique<ParcelReader>(*core, loop, *registry);
  core->set_parcel_desk(parcel_owner.get());
  KVF_CHECK(core->listen().ok());
}

SimEngine::Process::~Process() {
  loop.stop();
  parcel_owner->shut_down();
  core->shut_down();
  parcel_reader.reset();
  core->set_parcel_desk(nullptr);
  parcel_owner.reset();
  core.reset();
  loop.drain();
}

SimEngine::SimEngine(Timeline& timeline, Wires& wires, History& history, HostIndex host, uint64_t seed,
                     Fittings fittings, Hooks hooks)
    : timeline_(timeline),
      wires_(wires),
      history_(history),
      host_(host),
      name_(fmt::format("engine-{}", host)),
      seeds_(seed),
      fittings_(std::move(fittings)),
      hooks_(std::move(hooks)) {
  KVF_CHECK(host < kMaxHosts);
}

SimEngine::~SimEngine() = default;

std::byte* SimEngine::memory() const {
  return arena() + host_ * kMemory;
}

void SimEngine::start() {
  KVF_CHECK(!process_);
  ++life_;
  wires_.set_up(host_, true);
  process_ = std::make_unique<Process>(*this, seeds_.next());
  history_.mark(100, host_);
  history_.say("{} starts, life {}", name_, life_);
}

void SimEngine::kill(bool silently) {
  KVF_CHECK(process_ && !process_->loop.in_turn());
  history_.mark(101, host_);
  history_.say("{} {}", name_, silently ? "loses power" : "is killed");
  process_->loop.stop();
  if (silently) wires_.set_up(host_, false);
  wires_.drop_host(host_, silently);
  process_.reset();
}

int64_t SimEngine::gauge(const std::string& metric) const {
  const std::string text = "\n" + process_->metrics.expose();
  const size_t at = text.find("\n" + metric + " ");
  KVF_CHECK(at != std::string::npos);
  return std::stoll(text.substr(at + metric.size() + 2));
}

}  // namespace kvferry::simulator
