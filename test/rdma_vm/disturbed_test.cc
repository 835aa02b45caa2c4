#include <gtest/gtest.h>

#include "test/rdma_vm/on_a_cable.h"

// A network that loses, repeats and holds up what two devices send each other, or nothing of which arrives for a while:
// it costs time, and never a byte. Runs in the guest.

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr size_t kBytes = size_t{16} << 20;  // more than 3 s by the cable of begin()

class Disturbed : public OnACable {
 protected:
  void SetUp() override {
    OnACable::SetUp();
    if (cable_ && !HasFatalFailure()) start(kBytes, seconds(10), 30);  // nobody is given up here
  }
  // What is to be moved, and where it comes to lie.
  void fill(uint8_t value) {
    std::fill(memory_.begin(), memory_.end(), std::byte{is_read() ? uint8_t{0} : value});
    ASSERT_EQ(target_->ask("fill " + std::to_string(is_read() ? value : 0)), "ok");
  }
  void expect_moved(const Transfer& transfer, size_t length, uint8_t value) {
    const auto outcome = transfer.wait_for(seconds(120));
    ASSERT_TRUE(outcome.has_value()) << engine_->describe();
    ASSERT_TRUE(outcome->status.ok()) << outcome->status.error().to_string() << "\n" << engine_->describe();
    EXPECT_EQ(outcome->fabric, tested().fabric);
    const std::vector<std::byte> all(length, std::byte{value});
    EXPECT_TRUE(std::equal(all.begin(), all.end(), memory_.begin()));
    EXPECT_EQ(target_->memory(0, length), all);
  }
};

TEST_P(Disturbed, LossDelayAndDuplicatesCostOnlyTime) {
  ASSERT_NO_FATAL_FAILURE(expect_connected());
  constexpr size_t kSome = size_t{2} << 20;
  cable_->disturb("delay 1ms loss 0.4% duplicate 0.4%");
  for (uint8_t round = 1; round < 50 && cable_->dropped() < 5; ++round) {
    ASSERT_NO_FATAL_FAILURE(fill(round));
    ASSERT_NO_FATAL_FAILURE(expect_moved(submit(kSome), kSome, round));
  }
  EXPECT_GE(cable_->dropped(), 5u);
}

TEST_P(Disturbed, ACutThatHealsInTimeCostsOnlyTime) {
  ASSERT_NO_FATAL_FAILURE(expect_connected());
  ASSERT_NO_FATAL_FAILURE(fill(9));
  const Transfer transfer = begin(kBytes);
  cable_->swallow();
  EXPECT_FALSE(transfer.wait_for(milliseconds(1500)).has_value()) << "it was over before the cut";
  EXPECT_GT(cable_->dropped(), 0u);
  cable_->heal();
  expect_moved(transfer, kBytes, 9);
}

// I3, I4: a deadline is held, whatever the device waits for; nothing lands behind it, and the next transfer is served.
TEST_P(Disturbed, ADeadlineHoldsWhileNothingArrives) {
  ASSERT_NO_FATAL_FAILURE(expect_connected());
  ASSERT_NO_FATAL_FAILURE(fill(7));
  const Transfer transfer = begin(kBytes, milliseconds(1500));
  const auto began = std::chrono::steady_clock::now();
  cable_->swallow();
  const auto outcome = transfer.wait_for(seconds(60));
  ASSERT_TRUE(outcome.has_value()) << engine_->describe();
  EXPECT_LT(std::chrono::steady_clock::now() - began, milliseconds(1500) + seconds(3));
  EXPECT_GT(cable_->dropped(), 0u);
  ASSERT_FALSE(outcome->status.ok()) << "it was over before the cut";
  EXPECT_EQ(outcome->status.error().code, ErrorCode::deadline_exceeded) << outcome->status.error().to_string();
  EXPECT_EQ(outcome->remote, is_read() ? RemoteQuiet::quiet : RemoteQuiet::unknown);
  const std::vector<std::byte> quiet = memory_;
  cable_->heal();
  const auto moves_a_little = [&] { return submit(5000).wait().status.ok(); };
  ASSERT_TRUE(eventually(moves_a_little)) << engine_->describe();
  if (is_read()) {
    EXPECT_TRUE(std::equal(memory_.begin() + 5000, memory_.end(), quiet.begin() + 5000))
        << "written to after the outcome";
  }
  // The owner has let in the connection that stands for the end of the one before, so that nothing of that one lands.
  const std::vector<std::byte> theirs = target_->memory();
  ASSERT_TRUE(moves_a_little());
  EXPECT_EQ(target_->memory(), theirs);
}

INSTANTIATE_TEST_SUITE_P(All, Disturbed, ::testing::Values(Operation::read, Operation::write), operation_name);

}  // namespace
}  // namespace kvferry::test
