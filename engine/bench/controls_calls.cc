#include <fmt/format.h>

#include <sstream>

#include "engine/bench/controls.h"
#include "engine/bench/measuring.h"
#include "engine/bench/placement.h"

// Control figures of single calls: first contact, notifications, registration.

namespace kvferry::bench {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kPool = uint64_t{64} << 20;

// From knowing an address to holding 4 KiB of its memory, by an engine that has never met it.
Result<double> first_contact(const std::string& fabric, const std::string& address, RegionId region) {
  alignas(8) static thread_local std::byte page[kPage];
  KVF_ASSIGN_OR_RETURN(const auto engine, Engine::create(client_config(fabric)));
  KVF_ASSIGN_OR_RETURN(const Region ours, engine->register_memory(page, kPage, MemoryKind::host, kPrivate));
  Status status;
  const double took = timed([&] {
    auto peer = engine->peer(address);
    if (peer)
      status = engine->transfer({*peer, Operation::read, {{page, region, 0, kPage}}, Duration(0), {}}).status;
    else
      status = std::move(peer).error();
  });
  KVF_RETURN_IF_ERROR(std::move(status));
  return took;
}

}  // namespace

Result<std::vector<Figure>> measure_contact() {
  constexpr int kSamples = 21;
  KVF_ASSIGN_OR_RETURN(Remote remote, Remote::spawn(kPool));
  std::vector<Figure> figures;
  for (const std::string fabric : {"local", "tcp"}) {
    for (const int regions : {1, 128, 4096}) {
      KVF_ASSIGN_OR_RETURN(const std::string answer, remote.ask(fmt::format("regions {}", regions)));
      std::istringstream words(answer);
      std::string address;
      RegionId region = 0;
      words >> address >> region;
      Samples samples;
      for (int i = 0; i < kSamples; ++i) {
        KVF_ASSIGN_OR_RETURN(const double took, first_contact(fabric, address, region));
        samples.add(took);
      }
      const double milliseconds = samples.median() / 1e3;
      std::optional<Verdict> verdict;
      if (regions == 128) verdict = at_most(milliseconds, 2, "ms");
      if (regions == 4096) verdict = at_most(milliseconds, 10, "ms");
      figures.push_back(
          {fmt::format("first contact and 4 KiB read, {}, {} regions", fabric, regions), milliseconds, "ms", verdict});
    }
  }
  return figures;
}

Result<std::vector<Figure>> measure_notify() {
  constexpr int kSamples = 1000;
  constexpr int kTakeEvery = 250;
  KVF_ASSIGN_OR_RETURN(Remote remote, Remote::spawn(kPool));
  KVF_ASSIGN_OR_RETURN(const UniqueFd raw, dial(remote.raw_address()));
  const Apart apart(remote.pid());
  std::vector<Figure> figures;
  for (const std::string fabric : {"local", "tcp"}) {
    KVF_ASSIGN_OR_RETURN(const auto client,
                         Client::create(client_config(fabric), remote.engine_address(), remote.region(), kPage));
    Samples alone;
    Samples with_data;
    Samples pings;
    Status status;
    for (int i = 0; i < kSamples && status.ok(); ++i) {
      alone.add(timed([&] {
        status = client->engine->notify_and_wait(client->peer, {"bench", "0123456789abcdef"}).status;
      }));
      if (!status.ok()) break;
      TransferRequest request = client->request(Operation::write, kPage);
      request.notify = Notification{"bench", "0123456789abcdef"};
      with_data.add(timed([&] { status = client->engine->transfer(std::move(request)).status; }));
      if (!status.ok()) break;
      pings.add(timed([&] { status = raw_ping(raw.get()); }));
      if (i % kTakeEvery == 0 && status.ok()) status = remote.tell("take");
    }
    KVF_RETURN_IF_ERROR(std::move(status));
    figures.push_back({fmt::format("notification of 16 bytes, {}", fabric), alone.median(), "us", {}});
    figures.push_back({fmt::format("4 KiB write with a notification, {}", fabric), with_data.median(), "us", {}});
    figures.push_back({fmt::format("raw ping-pong beside the two, {}", fabric), pings.median(), "us", {}});
  }
  return figures;
}

Result<std::vector<Figure>> measure_register() {
  constexpr int kSamples = 101;
  constexpr uint64_t kRegions = 4096;
  KVF_ASSIGN_OR_RETURN(const auto engine, Engine::create(EngineConfig{}));
  KVF_ASSIGN_OR_RETURN(const auto pool, Pool::create(kPool));
  Samples opening;
  Samples closing;
  for (int i = 0; i < kSamples; ++i) {
    std::optional<Result<Region>> region;
    opening.add(timed(
        [&] { region.emplace(engine->register_memory(pool->base(), kPool, MemoryKind::host, kRemoteReadWrite)); }));
    KVF_RETURN_IF_ERROR(region->ok() ? Status() : Status(region->error()));
    Status status;
    closing.add(timed([&] { status = (*region)->unregister(); }));
    KVF_RETURN_IF_ERROR(std::move(status));
  }
  std::vector<std::pair<void*, uint64_t>> ranges;
  for (uint64_t i = 0; i < kRegions; ++i) ranges.emplace_back(pool->base() + i * kPage, kPage);
  std::optional<Result<std::vector<Region>>> all;
  const double together =
      timed([&] { all.emplace(engine->register_memory(ranges, MemoryKind::host, kRemoteReadWrite)); });
  KVF_RETURN_IF_ERROR(all->ok() ? Status() : Status(all->error()));
  const double leaving = timed([&] { all.reset(); });
  return std::vector<Figure>{
      {"registration of one region of 64 MiB", opening.median(), "us", {}},
      {"its unregistration", closing.median(), "us", {}},
      {"registration of 4096 regions in one call, each", together / kRegions, "us", {}},
      {"unregistration of 4096 regions, each", leaving / kRegions, "us", {}},
  };
}

}  // namespace kvferry::bench
