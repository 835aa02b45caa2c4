#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "test/conformance/null_engine.h"
#include "test/support/sanitized.h"

// What the engine costs above a fabric of a plug-in, measured with one that moves nothing (test/support/null_fabric).

namespace kvferry::test {
namespace {

double cpu_seconds() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  const auto of = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return of(used.ru_utime) + of(used.ru_stime);
}

TEST(PluginCost, AMillionDescriptorsTakeLessThanASecondOfACore) {
  constexpr size_t kPairs = 16384, kLength = 64, kTransfers = kSanitized ? 8 : 64, kRounds = 8;
  std::vector<std::byte> ours(kPairs * kLength * 2), theirs(ours.size());
  const auto owner = must(Engine::create(null_config("owner")));
  const auto initiator = must(Engine::create(null_config("initiator")));
  const Region region = must(owner->register_memory(theirs.data(), theirs.size(), MemoryKind::host, kRemoteRead));
  const Region landing = must(initiator->register_memory(ours.data(), ours.size(), MemoryKind::host, kPrivate));
  TransferRequest request;
  request.peer = must(initiator->peer(owner->address()));
  request.operation = Operation::read;
  for (size_t i = 0; i < kPairs; ++i)
    request.pairs.push_back({ours.data() + 2 * i * kLength, region.id(), 2 * i * kLength, kLength});
  const auto move = [&] {
    const Outcome outcome = must(initiator->submit(request)).wait();
    EXPECT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
    EXPECT_EQ(outcome.fabric, "ucx");
    EXPECT_EQ(outcome.spans_done, kPairs);
  };
  move();
  double each = 1;
  for (size_t round = 0; round < kRounds; ++round) {  // the best of them: a stand-still counts for who was on the core
    const double before = cpu_seconds();
    for (size_t i = 0; i < kTransfers / kRounds; ++i) move();
    each = std::min(each, (cpu_seconds() - before) / (kPairs * kTransfers / kRounds));
  }
  std::printf("%.0f ns of CPU a descriptor, %.1f million a second and core\n", each * 1e9, 1e-6 / each);
  if (!kSanitized) {
    EXPECT_LT(each, 1e-6);
  }
}

TEST(PluginCost, AThousandRegionsAreRegisteredInLessThan50Milliseconds) {
  constexpr size_t kRegions = 1000, kLength = size_t{64} << 10;
  std::vector<std::byte> memory(kRegions * kLength);
  const auto engine = must(Engine::create(null_config("owner")));
  double spent = 1;
  for (int round = 0; round < 10 && spent >= 0.05; ++round) {
    std::vector<Region> regions;
    const double before = cpu_seconds();
    for (size_t i = 0; i < kRegions; ++i)
      regions.push_back(
          must(engine->register_memory(memory.data() + i * kLength, kLength, MemoryKind::host, kRemoteReadWrite)));
    spent = std::min(spent, cpu_seconds() - before);
  }
  std::printf("%zu regions in %.1f ms of CPU\n", kRegions, spent * 1e3);
  if (!kSanitized) {
    EXPECT_LT(spent, 0.05);
  }
}

}  // namespace
}  // namespace kvferry::test
