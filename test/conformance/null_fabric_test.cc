#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "test/conformance/null_engine.h"

// What the engine makes of the answers that a plug-in may give to a get (test/support/null_fabric). Nothing moves: that
// a transfer is done, and what it counts, is all that there is to see.

namespace kvferry::test {
namespace {

constexpr size_t kReadBytes = size_t{1} << 20;

class NullFabric : public ::testing::Test {
 protected:
  void start(const char* setting, const char* value) {
    EngineConfig config = null_config("initiator");
    config.fabric_settings = {{"ucx", setting, value}};
    owner_ = must(Engine::create(null_config("owner")));
    initiator_ = must(Engine::create(config));
    region_.emplace(must(owner_->register_memory(theirs_.data(), kReadBytes, MemoryKind::host, kRemoteRead)));
    landing_.emplace(must(initiator_->register_memory(ours_.data(), kReadBytes, MemoryKind::host, kPrivate)));
  }

  Outcome read() {
    TransferRequest asked;
    asked.peer = must(initiator_->peer(owner_->address()));
    asked.operation = Operation::read;
    asked.pairs = {{ours_.data(), region_->id(), 0, kReadBytes}};
    asked.timeout = std::chrono::seconds(60);
    return initiator_->transfer(std::move(asked));
  }

  std::vector<std::byte> theirs_ = std::vector<std::byte>(kReadBytes);
  std::vector<std::byte> ours_ = std::vector<std::byte>(kReadBytes);
  std::unique_ptr<Engine> owner_, initiator_;
  std::optional<Region> region_, landing_;
};

TEST_F(NullFabric, ThatTakesNothingNowIsAskedAgain) {
  start("BUSY", "1000");
  const Outcome outcome = read();
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
  EXPECT_EQ(outcome.bytes_done, kReadBytes);
}

TEST_F(NullFabric, ThatRefusesATransferSaysWhyAndTakesTheNext) {
  start("REFUSE", "1");
  const Outcome refused = read();
  ASSERT_FALSE(refused.status.ok());
  EXPECT_EQ(refused.status.error().code, ErrorCode::unavailable);
  EXPECT_THAT(refused.status.error().to_string(), ::testing::HasSubstr("refused as it was told to"));
  const Outcome next = read();
  EXPECT_TRUE(next.status.ok()) << next.status.error().to_string();
}

TEST_F(NullFabric, GetsNoOperationLongerThanItsLongest) {
  start("LONGEST", "4096");
  const Outcome outcome = read();
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
  EXPECT_EQ(outcome.bytes_done, kReadBytes);
}

}  // namespace
}  // namespace kvferry::test
