#include <dlfcn.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>

#include "test/conformance/plugin_config.h"
#include "test/support/engines.h"

// What UCX sets up queue pairs with: it tells nobody else. So its call into libibverbs comes by here.

namespace {

// Of ibv_qp_attr, whose header need not be here: where its members lie, which is part of libibverbs' binary interface.
constexpr size_t kTimeoutAt = 130;
constexpr size_t kRetriesAt = 131;
constexpr int kHasTimeout = 1 << 9;
constexpr int kHasRetries = 1 << 10;

std::atomic<int> timeout{-1};  // 4.096 us times two to the power of it
std::atomic<int> retries{-1};

}  // namespace

// The program's own comes before that of the library, which it calls.
extern "C" __attribute__((visibility("default"))) int ibv_modify_qp(void* queue_pair, void* attributes, int mask) {
  const auto* bytes = static_cast<const uint8_t*>(attributes);
  if ((mask & kHasTimeout) != 0) timeout = bytes[kTimeoutAt];
  if ((mask & kHasRetries) != 0) retries = bytes[kRetriesAt];
  void* const library = ::dlopen("libibverbs.so.1", RTLD_LAZY | RTLD_NOLOAD);
  const auto next = reinterpret_cast<int (*)(void*, void*, int)>(::dlvsym(library, "ibv_modify_qp", "IBVERBS_1.1"));
  return next(queue_pair, attributes, mask);
}

namespace kvferry::test {
namespace {

class QueuePairs : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_rdma_device()) GTEST_SKIP() << "no variable names what drives a device";
    if (case_of("ucx") == nullptr) GTEST_SKIP() << "another fabric's device is under test";
  }
  // A connection between two engines that are told `settings`.
  static void connect(const std::vector<FabricSetting>& settings) {
    EngineConfig config = plugin_config(*case_of("ucx"));
    config.fabric_settings.insert(config.fabric_settings.end(), settings.begin(), settings.end());
    const auto owner = must(Engine::create(config));
    const auto initiator = must(Engine::create(config));
    std::vector<std::byte> theirs(10), ours(10);
    const Region region = must(owner->register_memory(theirs.data(), theirs.size(), MemoryKind::host, kRemoteRead));
    const Region landing = must(initiator->register_memory(ours.data(), ours.size(), MemoryKind::host, kPrivate));
    TransferRequest asked;
    asked.peer = must(initiator->peer(owner->address()));
    asked.operation = Operation::read;
    asked.pairs = {{ours.data(), region.id(), 0, ours.size()}};
    const Outcome outcome = initiator->transfer(std::move(asked));
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
  }
};

TEST_F(QueuePairs, GiveUpSoonerThanUcxWouldUnlessTheUserSaysOtherwise) {
  ASSERT_NO_FATAL_FAILURE(connect({}));
  EXPECT_EQ(retries, 4);
  EXPECT_EQ(timeout, 18) << "a second";
  // By this engine's setting for UCX, and by the variable of UCX's own.
  ASSERT_NO_FATAL_FAILURE(connect({{"ucx", "RC_RETRY_COUNT", "5"}, {"ucx", "RC_TIMEOUT", "500ms"}}));
  EXPECT_EQ(retries, 5);
  EXPECT_EQ(timeout, 17);
  ASSERT_EQ(::setenv("UCX_RC_RETRY_COUNT", "6", 1), 0);
  ASSERT_NO_FATAL_FAILURE(connect({}));
  ::unsetenv("UCX_RC_RETRY_COUNT");
  EXPECT_EQ(retries, 6);
}

}  // namespace
}  // namespace kvferry::test
