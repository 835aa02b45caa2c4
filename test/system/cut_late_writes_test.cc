#include <fstream>
#include <sstream>

#include "test/system/network.h"

// I4 where the network loses the reset of a lane that was given up: the stopped target must find another reason not to
// apply what lies in its socket. late_writes_test.cc has the rest.

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr size_t kBytes = size_t{8} << 20;
constexpr size_t kSlice = size_t{256} << 10;
constexpr size_t kHeld = 5 * kSlice;  // unread by the target, so that a late write would be seen
constexpr int kRounds = 5;

struct Queues {
  size_t to_send = 0;
  size_t unread = 0;
};

// The bytes in this side's connections with a target.
Queues queues(const Link& link, Side side) {
  const Inside inside(link, side);
  std::ifstream table("/proc/thread-self/net/tcp");
  Queues sum;
  std::string line;
  std::getline(table, line);
  while (std::getline(table, line)) {
    std::istringstream words(line);
    std::string number;
    std::string local;
    std::string remote;
    std::string state;
    std::string both;
    words >> number >> local >> remote >> state >> both;
    const std::string port = ":1BBC";  // 7100
    if (state != "01" || !(local.ends_with(port) || remote.ends_with(port))) continue;
    sum.to_send += std::stoull(both.substr(0, 8), nullptr, 16);
    sum.unread += std::stoull(both.substr(9), nullptr, 16);
  }
  return sum;
}

class LateWritesBehindACut : public OnALink<::testing::Test> {
 protected:
  void start(int heartbeat_ms, int missed_heartbeats) {
    {
      const Inside left(*link_, Side::left);
      std::ofstream("/proc/sys/net/ipv4/tcp_rmem") << "4096 4194304 8388608";
    }
    initiator_.emplace("tcp", kBytes, AuthConfig(), milliseconds(heartbeat_ms), missed_heartbeats + 1);
    target_.emplace(start_target(kBytes, heartbeat_ms, missed_heartbeats));
  }
  // A write is given up while the target, in the middle of it, is stopped and cannot be reached; the target's memory
  // then.
  std::vector<std::byte> give_up_behind_a_cut(uint8_t value) {
    for (int attempt = 0; attempt < 10; ++attempt) {
      shape("rate 40M");
      initiator_->fill(value);
      const Transfer transfer =
          must(initiator_->engine().submit(initiator_->request(*target_, Operation::write, seconds(30))));
      const uint64_t piece = kBytes / 256;
      EXPECT_TRUE(eventually([&] { return transfer.done() || target_->has_byte(piece, std::byte{value}); }));
      EXPECT_TRUE(target_->process().stop().ok());
      const bool hit = eventually([&] { return transfer.done() || queues(*link_, Side::left).unread >= kHeld; });
      shape("cut");
      transfer.cancel();
      std::vector<std::byte> then = target_->memory();
      if (hit && queues(*link_, Side::left).unread >= kHeld) return then;
      heal();
      EXPECT_TRUE(target_->process().resume().ok());
    }
    ADD_FAILURE() << "the target was never stopped in the middle of a write";
    return target_->memory();
  }
  size_t late_bytes(const std::vector<std::byte>& then) {
    const std::vector<std::byte> now = target_->memory();
    size_t late = 0;
    for (size_t i = 0; i < now.size(); ++i) late += now[i] != then[i];
    return late;
  }

  std::optional<Initiator> initiator_;
  std::optional<Target> target_;
};

// The reset is lost; the fence on the session arrives, for a session says things again, and a kernel that hears of a
// connection that it no longer has resets it once more: whichever comes first.
TEST_F(LateWritesBehindACut, AreStoppedWhenTheNetworkComesBack) {
  start(10000, 3);
  for (uint8_t value = 1; value <= kRounds && !HasFailure(); ++value) {
    const std::vector<std::byte> then = give_up_behind_a_cut(value);
    shape("heal");
    ASSERT_TRUE(eventually([&] { return queues(*link_, Side::right).to_send == 0; }));  // the fence is there
    ASSERT_TRUE(target_->process().resume().ok());
    const PeerRef peer = must(initiator_->engine().peer(target_->address()));
    ASSERT_TRUE(must(initiator_->engine().notify(peer, {"n", ""}, seconds(20))).wait().status.ok());
    EXPECT_LE(late_bytes(then), kSlice);
    expect_works(*initiator_, *target_);
  }
}

// Neither arrives: a target that was stopped for longer than the heartbeats allow trusts nothing that it was sent.
TEST_F(LateWritesBehindACut, AreStoppedByTheTargetsOwnClockWhenNothingArrives) {
  start(200, 3);
  const SystemClock clock;
  for (uint8_t value = 1; value <= kRounds && !HasFailure(); ++value) {
    const std::vector<std::byte> then = give_up_behind_a_cut(value);
    const TimePoint until = clock.now() + milliseconds(800);
    ASSERT_TRUE(eventually([&] { return clock.now() > until; }));
    ASSERT_TRUE(target_->process().resume().ok());
    for (int i = 0; i < 20; ++i) static_cast<void>(target_->ask("describe"));  // a turn of its loop each
    EXPECT_LE(late_bytes(then), kSlice);
    EXPECT_TRUE(eventually([&] { return target_->ask("describe").find("\"sessions\":0") != std::string::npos; }));
    heal();
    // The initiator learns only by using its session that the target has ended it.
    const PeerRef peer = must(initiator_->engine().peer(target_->address()));
    ASSERT_TRUE(eventually([&] {
      return must(initiator_->engine().notify(peer, {"n", ""}, seconds(5))).wait().status.ok();
    }));
    expect_works(*initiator_, *target_);
  }
}

}  // namespace
}  // namespace kvferry::test
