#include <gtest/gtest.h>

#include "test/rdma_vm/on_a_cable.h"

// A host that vanishes: nothing of it answers any more, and nothing says so, neither its device nor its kernel. Runs in
// the guest.

namespace kvferry::test {
namespace {

using std::chrono::seconds;

constexpr size_t kBytes = size_t{8} << 20;

class Vanished : public OnACable {
 protected:
  void SetUp() override {
    OnACable::SetUp();
    if (cable_ && !HasFatalFailure()) start(kBytes, seconds(1), 3);
  }
};

// I3, I4: the outcome comes in the time of heartbeats, the memory is quiet behind it, and the host that comes back is
// served.
TEST_P(Vanished, IsToldAndServedAgainOnceItIsBack) {
  ASSERT_NO_FATAL_FAILURE(expect_connected());
  const Transfer transfer = begin(kBytes);
  cable_->swallow();
  const auto began = std::chrono::steady_clock::now();
  const auto outcome = transfer.wait_for(seconds(120));
  ASSERT_TRUE(outcome.has_value()) << engine_->describe();
  ASSERT_FALSE(outcome->status.ok()) << "it was over before the host was gone";
  const ErrorCode code = outcome->status.error().code;  // of the session, or of the device's next connection
  EXPECT_TRUE(code == ErrorCode::peer_lost || code == ErrorCode::unavailable) << outcome->status.error().to_string();
  const auto took = std::chrono::steady_clock::now() - began;
  std::printf("told after %.1f s: %s\n", std::chrono::duration<double>(took).count(),
              outcome->status.error().to_string().c_str());
  EXPECT_LT(took, seconds(10));
  const std::vector<std::byte> quiet = memory_;
  cable_->heal();
  Outcome again;
  ASSERT_TRUE(eventually([&] { return (again = submit(5000).wait()).status.ok(); }))
      << again.status.error().to_string();
  if (is_read()) {
    EXPECT_TRUE(std::equal(memory_.begin() + 5000, memory_.end(), quiet.begin() + 5000))
        << "written to after the outcome";
  }
  const Status gone = region_.unregister(seconds(10));
  EXPECT_TRUE(gone.ok()) << gone.error().to_string();
}

INSTANTIATE_TEST_SUITE_P(All, Vanished, ::testing::Values(Operation::read, Operation::write), operation_name);

}  // namespace
}  // namespace kvferry::test
