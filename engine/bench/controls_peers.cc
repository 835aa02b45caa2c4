#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "engine/bench/controls.h"
#include "engine/bench/measuring.h"

// Control figures of other peers' behaviour: stopped, slow, and very many.

namespace kvferry::bench {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint64_t kPage = 4096;
constexpr uint64_t kMiB = uint64_t{1} << 20;

double as_seconds(Duration span) {
  return kvferry::seconds(span);
}

}  // namespace

Result<std::vector<Figure>> measure_stopped() {
  constexpr auto kWait = seconds(4);
  KVF_ASSIGN_OR_RETURN(Remote remote, Remote::spawn(64 * kMiB));
  EngineConfig config = client_config("tcp");
  config.heartbeat = seconds(30);  // so that the transfer waits, and is not ended by the peer's silence
  KVF_ASSIGN_OR_RETURN(const auto client, Client::create(config, remote.engine_address(), remote.region(), 64 * kMiB));
  KVF_RETURN_IF_ERROR(client->engine->transfer(client->request(Operation::read, 64 * kMiB)).status);
  KVF_RETURN_IF_ERROR(remote.child().stop());
  std::vector<Figure> figures;
  for (const Operation operation : {Operation::read, Operation::write}) {
    TransferRequest request = client->request(operation, 64 * kMiB);
    request.timeout = kWait;
    const auto before = cpu_time_of(::getpid());
    const Outcome outcome = client->engine->transfer(std::move(request));
    const auto after = cpu_time_of(::getpid());
    if (outcome.status.ok() || outcome.status.error().code != ErrorCode::deadline_exceeded)
      return Error{ErrorCode::internal, "the transfer to a stopped peer did not wait for its deadline"};
    const double share = 100 * as_seconds(*after - *before) / as_seconds(kWait);
    figures.push_back({fmt::format("CPU of one core while a {} of 64 MiB waits for a stopped peer",
                                   operation == Operation::read ? "read" : "write"),
                       share, "%", at_most(share, 1, "%")});
  }
  return figures;
}

Result<std::vector<Figure>> measure_crowd() {
  constexpr size_t kSessions = 1000;
  constexpr auto kWatch = seconds(5);
  constexpr int kReads = 3000;
  constexpr int kBurst = 10;
  KVF_ASSIGN_OR_RETURN(Remote crowded, Remote::spawn(kMiB));
  KVF_ASSIGN_OR_RETURN(Remote quiet, Remote::spawn(kMiB));
  KVF_ASSIGN_OR_RETURN(const uint64_t empty, resident_bytes_of(crowded.pid()));
  KVF_ASSIGN_OR_RETURN(Child crowd,
                       Child::spawn({"--crowd", crowded.engine_address(), "--sessions", std::to_string(kSessions)}));
  KVF_ASSIGN_OR_RETURN(const std::string ready, crowd.read_line());
  const auto before = cpu_time_of(crowded.pid());
  const double watched = timed([&] { std::this_thread::sleep_for(kWatch); }) / 1e6;
  const auto after = cpu_time_of(crowded.pid());
  KVF_ASSIGN_OR_RETURN(const uint64_t resident, resident_bytes_of(crowded.pid()));
  KVF_ASSIGN_OR_RETURN(const auto among,
                       Client::create(client_config("tcp"), crowded.engine_address(), crowded.region(), kPage));
  KVF_ASSIGN_OR_RETURN(const auto alone,
                       Client::create(client_config("tcp"), quiet.engine_address(), quiet.region(), kPage));
  Samples among_samples;
  Samples alone_samples;
  for (int i = 0; i < kReads; i += kBurst) {
    for (const auto& [reader, samples] : {std::pair{among.get(), &among_samples}, {alone.get(), &alone_samples}})
      for (int j = 0; j < kBurst; ++j) {
        Status status;
        samples->add(timed([&status, client = reader] {  // clang 14 takes no structured binding by reference
          status = client->engine->transfer(client->request(Operation::read, kPage)).status;
        }));
        KVF_RETURN_IF_ERROR(std::move(status));
      }
  }
  size_t echoes = 0;
  for (int i = 0; i < 4; ++i) {
    KVF_ASSIGN_OR_RETURN(const std::string line, crowd.read_line());
    echoes = std::stoul(line);
  }
  if (echoes < kSessions * 9 / 10)
    return Error{ErrorCode::internal, fmt::format("only {} of {} heartbeats were answered", echoes, kSessions)};
  const double megabytes = static_cast<double>(resident) / 1e6;
  const double share = 100 * as_seconds(*after - *before) / watched;
  const double ratio = among_samples.median() / alone_samples.median();
  return std::vector<Figure>{
      {"memory of an engine with 1000 sessions, program included", megabytes, "MB", at_most(megabytes, 100, "MB")},
      {"of that, by session", static_cast<double>(resident - empty) / 1e3 / kSessions, "KB", {}},
      {"CPU of one core for the heartbeats of 1000 sessions", share, "%", at_most(share, 5, "%")},
      {"4 KiB read alone, tcp", alone_samples.median(), "us", {}},
      {"4 KiB read among 1000 sessions, tcp", among_samples.median(), "us", {}},
      {"4 KiB read among 1000 sessions, times that alone", ratio, "x", at_most(ratio, 2, "x")},
  };
}

namespace {

constexpr int kHealthy = 6;

// What six peers read from one engine in a while, in bytes a second.
Result<double> throughput(std::vector<std::unique_ptr<Client>>& clients, Duration span) {
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> bytes{0};
  std::atomic<bool> failed{false};
  std::vector<std::thread> threads;
  const double took = timed([&] {
    for (auto& client : clients)
      threads.emplace_back([&, raw = client.get()] {
        while (!stop.load()) {
          if (!raw->engine->transfer(raw->request(Operation::read, kMiB)).status.ok()) failed.store(true);
          bytes.fetch_add(kMiB);
        }
      });
    std::this_thread::sleep_for(span);
    stop.store(true);
    for (std::thread& thread : threads) thread.join();
  });
  if (failed.load()) return Error{ErrorCode::internal, "a healthy peer's read failed"};
  return static_cast<double>(bytes.load()) / took * 1e6;
}

}  // namespace

Result<std::vector<Figure>> measure_fairness() {
  constexpr auto kSpan = milliseconds(1200);  // shorter than it takes to declare the stopped peer lost
  constexpr int kRounds = 5;
  KVF_ASSIGN_OR_RETURN(Remote remote, Remote::spawn(64 * kMiB));
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < kHealthy; ++i) {
    KVF_ASSIGN_OR_RETURN(auto client,
                         Client::create(client_config("tcp"), remote.engine_address(), remote.region(), kMiB));
    clients.push_back(std::move(client));
  }
  Samples without;
  Samples with;
  for (int round = 0; round < kRounds; ++round) {
    KVF_ASSIGN_OR_RETURN(const double healthy, throughput(clients, kSpan));
    without.add(healthy);
    KVF_ASSIGN_OR_RETURN(Child stopped, Child::spawn({"--reader", remote.engine_address(), "--rate", "1e9"}));
    KVF_ASSIGN_OR_RETURN(const std::string first, stopped.read_line());
    KVF_RETURN_IF_ERROR(stopped.stop());
    KVF_ASSIGN_OR_RETURN(Child slow, Child::spawn({"--reader", remote.engine_address(), "--rate", "1e6"}));
    KVF_ASSIGN_OR_RETURN(const std::string second, slow.read_line());
    KVF_ASSIGN_OR_RETURN(const double disturbed, throughput(clients, kSpan));
    with.add(disturbed);
  }
  const double kept = 100 * with.median() / without.median();
  return std::vector<Figure>{
      {"six peers of one engine, all reading 1 MiB at a time, tcp", without.median() / 1e9, "GB/s", {}},
      {"the same beside one stopped peer and one slow reader", with.median() / 1e9, "GB/s", {}},
      {"throughput that the six keep", kept, "%", at_least(kept, 90, "%")},
  };
}

}  // namespace kvferry::bench
