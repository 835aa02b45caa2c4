// Transfers without end against targets that are stopped and killed, cancelled at random and with short deadlines, for
// KVFERRY_SOAK_SECONDS (30 where unset). Ends with what is left over: memory, descriptors, threads and sessions of this
// process, and says `leaked` and fails when there is more than after the warm-up.
#include <dirent.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <random>

#include "common/config.h"
#include "common/random.h"
#include "engine/engine.h"
#include "test/support/eventually.h"
#include "test/support/stopwatch.h"
#include "test/support/target.h"

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr size_t kBytes = size_t{4} << 20;
constexpr size_t kTargets = 3;

size_t count_entries(const char* folder) {
  size_t count = 0;
  DIR* open = ::opendir(folder);
  while (open != nullptr && ::readdir(open) != nullptr) ++count;
  if (open != nullptr) ::closedir(open);
  return count;
}

struct Left {
  size_t descriptors = count_entries("/proc/self/fd");
  size_t threads = count_entries("/proc/self/task");
  size_t resident = 0;
  Left() {
    size_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages >> resident;
    resident *= static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  }
};

// One engine here, its memory, and targets that come and go behind it.
class Soak {
 public:
  explicit Soak(const std::string& fabric, uint64_t seed) : fabric_(fabric), random_(seed), memory_(kBytes) {
    EngineConfig config;
    config.engine_id = "soak";
    config.fabrics = {fabric};
    config.heartbeat = milliseconds(200);
    config.logger = make_null_logger();
    engine_ = std::move(Engine::create(config)).value();
    region_ = std::move(engine_->register_memory(memory_.data(), kBytes, MemoryKind::host, kRemoteReadWrite)).value();
    for (size_t i = 0; i < kTargets; ++i) targets_.push_back(Target::start(options()));
  }

  // And until there was enough of everything, however long the machine stood still meanwhile.
  void run_for(Duration span) {
    const TimePoint until = clock_.now() + span;
    while (clock_.now() < until || ended() < 100) round();
  }
  // Everything has ended, and nothing is in quarantine.
  bool settle() {
    for (Target& target : targets_) [[maybe_unused]] const Status ignored = target.process().resume();
    take_all();
    return eventually([&] { return engine_->describe().find("\"quarantined\":[]") != std::string::npos; });
  }
  // The sessions that the targets still hold once the engine that dialled them is gone.
  size_t sessions_left() {
    region_ = Region();
    engine_.reset();
    size_t left = 0;
    static_cast<void>(eventually([&] {
      left = 0;
      for (Target& target : targets_) left += sessions_of(target);
      return left == 0;
    }));
    return left;
  }
  size_t ended() const { return ok_ + failed_; }
  size_t ok() const { return ok_; }
  size_t late() const { return late_; }
  size_t restarts() const { return restarts_; }

 private:
  Target::Options options() const {
    Target::Options made;
    made.fabric = fabric_;
    made.bytes = kBytes;
    return made;
  }
  static size_t sessions_of(Target& target) {
    const std::string said = target.ask("describe");
    const size_t at = said.find("\"sessions\":");
    return at == std::string::npos ? 1 : std::stoull(said.substr(at + 11));
  }
  uint64_t below(uint64_t bound) { return random_() % bound; }

  // I3: each has its outcome by its deadline, but for the machine's share.
  void take_all() {
    for (const auto& [transfer, deadline, stood] : live_) {
      const TimePoint began = clock_.now();
      ++(transfer.wait().status.ok() ? ok_ : failed_);
      const Duration share = milliseconds(1500) + stopwatch_.stood_still() - stood;
      late_ += clock_.now() > std::max(began, deadline) + share;
    }
    live_.clear();
  }

  void round() {
    const size_t which = below(kTargets);
    Target& target = targets_[which];
    TransferRequest request;
    request.peer = std::move(engine_->peer(target.address())).value();
    request.operation = below(2) == 0 ? Operation::read : Operation::write;
    const uint64_t piece = uint64_t{1} << (8 + below(12));
    for (uint64_t at = below(piece); at + 2 * piece < kBytes && request.pairs.size() < 300; at += 2 * piece)
      request.pairs.push_back({memory_.data() + at, target.region(), kBytes - at - piece, piece});
    request.timeout = below(8) == 0 ? milliseconds(1 + below(20)) : milliseconds(3000);
    if (below(4) == 0) request.notify = Notification{"soak", std::string(below(2000), 'n')};
    const Duration timeout = request.timeout;
    if (request.pairs.empty()) return;
    const Duration stood = stopwatch_.seen_standing_still();
    const TimePoint began = clock_.now();
    auto submitted = engine_->submit(std::move(request));
    if (!submitted.ok()) return;
    live_.push_back({*submitted, began + timeout, stood});
    misbehave(which);
    if (!live_.empty() && below(6) == 0) live_[below(live_.size())].transfer.cancel();
    if (live_.size() < 12) return;
    take_all();
    if (below(10) == 0) register_anew();
  }

  void misbehave(size_t which) {
    Target& target = targets_[which];
    switch (below(60)) {
      case 0:
        if (target.process().kill().ok()) target = Target::start(target.successor());
        ++restarts_;
        return;
      case 1:
        [[maybe_unused]] const Status stopped = target.process().stop();
        take_all();
        [[maybe_unused]] const Status resumed = target.process().resume();
        return;
    }
  }
  void register_anew() {
    [[maybe_unused]] const Status ignored = region_.unregister(seconds(10));
    region_ = std::move(engine_->register_memory(memory_.data(), kBytes, MemoryKind::host, kRemoteReadWrite)).value();
  }

  struct Live {
    Transfer transfer;
    TimePoint deadline;
    Duration stood;  // how long the machine had stood still when it was submitted
  };

  const SystemClock clock_;
  const Stopwatch stopwatch_;
  const std::string fabric_;
  std::mt19937_64 random_;
  std::vector<std::byte> memory_;
  std::unique_ptr<Engine> engine_;
  Region region_;
  std::vector<Target> targets_;
  std::vector<Live> live_;
  size_t ok_ = 0;
  size_t failed_ = 0;
  size_t late_ = 0;
  size_t restarts_ = 0;
};

// Whether nothing is left of the run but what was before.
bool report(const char* what, size_t before, size_t after, size_t allowed) {
  std::printf("%-12s %zu before, %zu after%s\n", what, before, after, after > before + allowed ? ": leaked" : "");
  return after <= before + allowed;
}

bool soak(const std::string& fabric, Duration span, uint64_t seed) {
  const Duration warm_span = std::min<Duration>(span / 5, seconds(20));
  {
    Soak warm_up(fabric, seed);
    warm_up.run_for(warm_span);
    if (!warm_up.settle()) return false;
  }
  const Left before;
  size_t late = 0;
  size_t sessions = 0;
  {
    Soak run(fabric, seed + 1);
    run.run_for(span - warm_span);
    const bool settled = run.settle();
    late = run.late();
    std::printf("%s: %zu transfers, %zu ok, %zu restarts of targets, %zu outcomes late\n", fabric.c_str(), run.ended(),
                run.ok(), run.restarts(), late);
    if (!settled || run.ok() == 0 || run.ok() == run.ended()) return false;
    sessions = run.sessions_left();
  }
  // A thread that was waited for is in /proc for a moment yet.
  static_cast<void>(eventually([&] { return count_entries("/proc/self/task") <= before.threads; }));
  const Left after;
  bool clean = report("sessions", 0, sessions, 0);
  clean &= report("descriptors", before.descriptors, after.descriptors, 0);
  clean &= report("threads", before.threads, after.threads, 0);
  clean &= report("memory", before.resident, after.resident, size_t{8} << 20);
  return clean && late == 0;
}

int run() {
  const auto asked = Environment::of_process().integer("KVFERRY_SOAK_SECONDS", 30, 4, 1000000);
  if (!asked.ok()) return std::fprintf(stderr, "%s\n", asked.error().to_string().c_str()), 2;
  const Duration half = std::chrono::seconds(*asked) / 2;
  const uint64_t seed = SystemRandom().next();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  const bool tcp = soak("tcp", half, seed);
  const bool local = soak("local", half, seed);
  std::puts(tcp && local ? "clean" : "FAILED");
  return tcp && local ? 0 : 1;
}

}  // namespace
}  // namespace kvferry::test

int main() {
  return kvferry::test::run();
}
