#include "engine/bench/runner.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "engine/bench/auth.h"
#include "engine/bench/placement.h"

namespace kvferry::bench {
namespace {

constexpr uint64_t kSmallBytes = uint64_t{1} << 20;  // transfers above are sampled one at a time
constexpr uint64_t kBulkBytes = uint64_t{64} << 20;  // and get four raw connections as well
constexpr size_t kFewestRounds = 5;
constexpr uint64_t kOurSeed = 11;
constexpr uint64_t kTheirSeed = 7;

double now_us() {
  return std::chrono::duration<double, std::micro>(SystemClock().now().time_since_epoch()).count();
}

template <class T>
Status status_of(const Result<T>& result) {
  return result ? Status() : Status(result.error());
}

}  // namespace

Result<std::unique_ptr<Runner>> Runner::create(Remote remote, RunnerOptions options) {
  std::unique_ptr<Runner> runner(new Runner(std::move(remote), options));
  KVF_ASSIGN_OR_RETURN(runner->pool_, Pool::create(runner->remote_.pool()));
  KVF_ASSIGN_OR_RETURN(runner->mirror_, Pool::create(runner->remote_.pool()));
  return runner;
}

Result<Runner::Initiator*> Runner::initiator(const std::string& fabric) {
  const auto found = initiators_.find(fabric);
  if (found != initiators_.end()) return &found->second;
  KVF_ASSIGN_OR_RETURN(EngineConfig config, base_config());
  config.engine_id = "bench-initiator-" + fabric;
  config.fabrics = {fabric};
  Initiator fresh;
  KVF_ASSIGN_OR_RETURN(fresh.engine, Engine::create(config));
  KVF_ASSIGN_OR_RETURN(fresh.region,
                       fresh.engine->register_memory(pool_->base(), pool_->size(), MemoryKind::host, kPrivate));
  KVF_ASSIGN_OR_RETURN(fresh.peer, fresh.engine->peer(remote_.engine_address()));
  KVF_RETURN_IF_ERROR(fresh.peer.connect(std::chrono::seconds(10)));
  return &initiators_.emplace(fabric, std::move(fresh)).first->second;
}

Status Runner::connect_raw(size_t connections) {
  while (raw_.size() < connections) {
    KVF_ASSIGN_OR_RETURN(UniqueFd fd, dial(remote_.raw_address()));
    raw_.push_back(std::move(fd));
  }
  return {};
}

Status Runner::prepare(const Case& tested, Initiator& initiator) {
  if (tested.fabric == "local" && !remote_.same_host())
    return Error{ErrorCode::unsupported, "the fabric local needs a target on this host"};
  if (!fits(tested, pool_->size()))
    return Error{ErrorCode::invalid_argument, fmt::format("{} by {} threads do not fit into a pool of {}",
                                                          shape_of(tested), tested.threads, bytes_text(pool_->size()))};
  KVF_RETURN_IF_ERROR(remote_.tell("plan " + to_line(tested)));
  work_.clear();
  for (int thread = 0; thread < tested.threads; ++thread) {
    const auto ours = block_offsets(tested, Side::local, thread, pool_->size());
    const auto theirs = block_offsets(tested, Side::remote, thread, pool_->size());
    Work& work = work_.emplace_back();
    work.request.peer = initiator.peer;
    work.request.operation = tested.operation;
    for (size_t i = 0; i < ours.size(); ++i) {
      work.request.pairs.push_back({pool_->base() + ours[i], remote_.region(), theirs[i], tested.block});
      work.ours.push_back({pool_->base() + ours[i], tested.block});
      work.theirs.push_back({reinterpret_cast<void*>(remote_.base() + theirs[i]), tested.block});
      work.mirror.push_back({mirror_->base() + theirs[i], tested.block});
    }
  }
  return connect_raw(tested.bytes() >= kBulkBytes ? 4 : static_cast<size_t>(tested.threads));
}

Runner::Step Runner::product_step(Engine& engine) {
  return [this, &engine](int thread) -> Status {
    Outcome outcome = engine.transfer(work_[static_cast<size_t>(thread)].request);
    const double until = now_us() + std::chrono::duration<double, std::micro>(options_.handicap).count();
    while (now_us() < until) {
    }
    return std::move(outcome.status);
  };
}

Runner::Step Runner::limit_step(const Case& tested) {
  return [this, tested](int thread) -> Status {
    const auto index = static_cast<size_t>(thread);
    const Work& work = work_[index];
    // What reaches memory without its owner is beside what the kernel does so on one host.
    const bool one_sided = tested.fabric != "tcp" && remote_.same_host();
    if (one_sided) return raw_local(remote_.pid(), tested.operation, work.ours, work.theirs);
    if (tested.count == 1 && tested.block <= 4096) return raw_ping(raw_[index].get());
    return raw_tcp(raw_[index].get(), tested.operation, static_cast<uint32_t>(thread), work.ours);
  };
}

Result<double> Runner::sample(Crew& crew, const Step& step, Samples& samples) {
  std::vector<double> took(work_.size());
  std::vector<Status> ends(work_.size());
  crew.run([&](int thread) {
    const auto index = static_cast<size_t>(thread);
    const double began = now_us();
    ends[index] = step(thread);
    took[index] = now_us() - began;
  });
  for (size_t i = 0; i < took.size(); ++i) {
    KVF_RETURN_IF_ERROR(std::move(ends[i]));
    samples.add(took[i]);
  }
  return *std::max_element(took.begin(), took.end());
}

Status Runner::measure(Crew& crew, const Step& product, Row& row) {
  const Case& tested = row.tested;
  const Step limit = limit_step(tested);
  const Step copy = [this, &tested](int thread) -> Status {
    const Work& work = work_[static_cast<size_t>(thread)];
    raw_memcpy(tested.operation, work.ours, work.mirror);
    return {};
  };
  const Step four = [this, &tested](int) { return raw_tcp_parts(raw_, tested.operation, work_.front().ours); };
  const bool with_four =
      tested.fabric == "tcp" && tested.count == 1 && tested.bytes() >= kBulkBytes && tested.threads == 1;
  const int burst = tested.bytes() >= kSmallBytes ? 1 : options_.burst;
  const double wanted = std::chrono::duration<double, std::micro>(options_.time).count();
  Samples whole;  // of all threads, the slowest counts
  Duration cpu{0};
  bool cpu_known = remote_.same_host();
  double spent = 0;
  for (size_t round = 0; round < kFewestRounds || spent < wanted; ++round) {
    for (int i = 0; i < burst; ++i) {
      const auto ours = cpu_time_of(::getpid());
      const auto theirs = cpu_time_of(remote_.pid());
      KVF_ASSIGN_OR_RETURN(const double took, sample(crew, product, row.product));
      const auto ours_after = cpu_time_of(::getpid());
      const auto theirs_after = cpu_time_of(remote_.pid());
      cpu_known = cpu_known && ours && theirs && ours_after && theirs_after;
      if (cpu_known) cpu += *ours_after - *ours + *theirs_after - *theirs;
      whole.add(took);
      spent += took;
    }
    for (int i = 0; i < burst; ++i) KVF_RETURN_IF_ERROR(status_of(sample(crew, limit, row.limit)));
    if (with_four) KVF_RETURN_IF_ERROR(status_of(sample(crew, four, row.four_raw)));
    if (round % 4 == 0) KVF_RETURN_IF_ERROR(status_of(sample(crew, copy, row.copied)));
  }
  const double bytes = static_cast<double>(tested.bytes()) * tested.threads;
  row.gigabytes_per_second = bytes / whole.median() / 1e3;
  if (cpu_known) row.cpu_per_gb = seconds(cpu) / (bytes * static_cast<double>(whole.size()) / 1e9);
  return {};
}

// Every byte of both pools: those that were to move, and those that were not.
Status Runner::verify(const Case& tested, const Step& product) {
  pool_->fill(kOurSeed);
  KVF_RETURN_IF_ERROR(remote_.tell(fmt::format("fill {}", kTheirSeed)));
  std::vector<Status> ends(work_.size());
  Crew crew(tested.threads);
  crew.run([&](int thread) { ends[static_cast<size_t>(thread)] = product(thread); });
  for (Status& end : ends) KVF_RETURN_IF_ERROR(std::move(end));
  const bool read = tested.operation == Operation::read;
  std::vector<Moved> moved;
  for (int thread = 0; read && thread < tested.threads; ++thread) {
    const auto here = block_offsets(tested, Side::local, thread, pool_->size());
    const auto there = block_offsets(tested, Side::remote, thread, pool_->size());
    for (size_t i = 0; i < here.size(); ++i) moved.push_back({here[i], there[i], tested.block});
  }
  KVF_RETURN_IF_ERROR(check_pool(*pool_, kOurSeed, moved, kTheirSeed));
  return remote_.tell(fmt::format("check {} {}", kTheirSeed, read ? 0 : kOurSeed));
}

Result<Row> Runner::run(const Case& tested) {
  Row row;
  row.tested = tested;
  KVF_ASSIGN_OR_RETURN(Initiator* const with, initiator(tested.fabric));
  KVF_RETURN_IF_ERROR(prepare(tested, *with));
  const Step product = product_step(*with->engine);
  if (options_.verify) KVF_RETURN_IF_ERROR(verify(tested, product));
  std::optional<Apart> apart;  // more bytes, or more threads, are worth more than a core a side
  if (tested.fabric != "local" && remote_.same_host() && tested.threads == 1 && tested.bytes() < kBulkBytes)
    apart.emplace(remote_.pid());
  Crew crew(tested.threads);
  Samples warming;
  KVF_RETURN_IF_ERROR(status_of(sample(crew, product, warming)));
  KVF_RETURN_IF_ERROR(status_of(sample(crew, limit_step(tested), warming)));
  KVF_RETURN_IF_ERROR(measure(crew, product, row));
  return row;
}

}  // namespace kvferry::bench
