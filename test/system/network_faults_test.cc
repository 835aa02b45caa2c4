#include <gmock/gmock.h>

#include "test/support/peek.h"
#include "test/system/network.h"

// Transfers over a network that loses, delays, is slow, or is cut while they are under way (I3, I5).

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ContainsRegex;

constexpr size_t kBytes = size_t{8} << 20;
constexpr int kHeartbeat = 300;  // ms; the target allows 3 of them, the initiator 4
constexpr Duration kPatience = milliseconds(4 * kHeartbeat);

class NetworkFaults : public OnALink<::testing::TestWithParam<Operation>> {
 protected:
  void SetUp() override {
    OnALink::SetUp();
    if (IsSkipped()) return;
    start(4, 3);
  }
  void start(int our_misses, int their_misses) {
    target_.reset();
    initiator_.emplace("tcp", kBytes, AuthConfig(), milliseconds(kHeartbeat), our_misses);
    target_.emplace(start_target(kBytes, kHeartbeat, their_misses));
  }
  // Where the heartbeats are not what ends a transfer: neither does a machine that stands still.
  void be_patient() { start(kPatient, kPatient); }
  static bool is_write() { return GetParam() == Operation::write; }

  bool landed(uint64_t offset) {
    if (is_write()) return target_->has_byte(offset, std::byte{seed_});
    return peek(initiator_->memory().data() + offset) == std::byte{seed_};
  }
  // Begins a transfer of bytes that were not there before; returns when a quarter of them are, or it is over.
  Transfer begin(Duration timeout) {
    ++seed_;
    initiator_->fill(is_write() ? seed_ : uint8_t{0});
    if (!is_write()) {
      EXPECT_EQ(target_->ask("fill " + std::to_string(seed_)), "ok");
    }
    const Transfer transfer = must(initiator_->engine().submit(initiator_->request(*target_, GetParam(), timeout)));
    EXPECT_TRUE(eventually([&] { return transfer.done() || landed(kBytes / 4); }));
    return transfer;
  }
  // Runs `fault` when a quarter of a transfer has landed, until it has hit one that then fails in its middle.
  template <class Fault>
  Outcome hit(Duration timeout, Duration limit, Fault fault) {
    for (int attempt = 0; attempt < 10; ++attempt) {
      shape("rate 40M");
      const Stopwatch whole;
      const Transfer transfer = begin(timeout);
      fault();
      const Stopwatch since_the_hit;
      const Outcome outcome = transfer.wait();
      EXPECT_LT(whole.elapsed(), timeout + kSlack);
      EXPECT_LT(since_the_hit.elapsed(), limit + kSlack) << text_of(outcome);
      if (in_the_middle(outcome, kBytes) && !outcome.status.ok()) return outcome;
      heal();
    }
    ADD_FAILURE() << "the fault never landed in the middle of a transfer";
    return {};
  }
  void expect_exact() {
    const auto theirs = target_->memory();
    EXPECT_EQ(std::count(theirs.begin(), theirs.end(), std::byte{seed_}), static_cast<ptrdiff_t>(kBytes));
    EXPECT_EQ(std::count(initiator_->memory().begin(), initiator_->memory().end(), std::byte{seed_}),
              static_cast<ptrdiff_t>(kBytes));
  }
  void expect_lost(const Outcome& outcome) {
    EXPECT_EQ(outcome.status.error().code, ErrorCode::peer_lost) << text_of(outcome);
    // Who hears nothing first ends the session, and may still be heard by the other.
    EXPECT_THAT(text_of(outcome),
                ContainsRegex("^transfer to peer \"p0\" \\(10\\.77\\.0\\.1:7100\\) failed after [0-9]+\\.[0-9] s: (no "
                              "heartbeat for [1-9][0-9]*\\.[0-9] s|connection closed by the other side.*); fabric tcp; "
                              "[0-9]+ of 256 spans done"));
  }

  std::optional<Initiator> initiator_;
  std::optional<Target> target_;
  uint8_t seed_ = 0;
};

TEST_P(NetworkFaults, LossDelayAndDuplicatesCostOnlyTime) {
  be_patient();
  expect_works(*initiator_, *target_);
  for (const char* command : {"delay 2ms", "loss 0.01", "duplicate 0.01"}) shape(command);
  const uint64_t lost_before = stats().lost;
  const Outcome outcome = begin(seconds(60)).wait();
  ASSERT_TRUE(outcome.status.ok()) << text_of(outcome);
  EXPECT_GT(stats().lost, lost_before) << "nothing was lost in the middle";
  EXPECT_GT(stats().duplicated, 0u);
  expect_exact();
}

TEST_P(NetworkFaults, ALinkThatIsTooSlowEndsAtTheDeadline) {
  be_patient();
  const Outcome outcome = hit(milliseconds(900), milliseconds(900), [&] { shape("rate 1M"); });
  EXPECT_EQ(outcome.status.error().code, ErrorCode::deadline_exceeded) << text_of(outcome);
  // Not before, and as soon as the machine was there.
  EXPECT_THAT(text_of(outcome), ContainsRegex("failed after (0\\.9|[1-9][0-9]*\\.[0-9]) s: (deadline exceeded|no "
                                              "heartbeat for [0-9]+\\.[0-9] s); fabric tcp; [0-9]+ of 256 spans done"));
  heal();
  expect_works(*initiator_, *target_);
}

TEST_P(NetworkFaults, ACutFailsByTheHeartbeatsAndHeals) {
  expect_lost(hit(seconds(20), kPatience, [&] { shape("cut"); }));
  heal();
  expect_works(*initiator_, *target_);
}

TEST_P(NetworkFaults, ACutOfWhatWeSendFailsByTheHeartbeatsAndHeals) {
  expect_lost(hit(seconds(20), kPatience, [&] { shape("cut right"); }));
  heal();
  expect_works(*initiator_, *target_);
}

TEST_P(NetworkFaults, ACutOfWhatThePeerSendsFailsByTheHeartbeatsAndHeals) {
  expect_lost(hit(seconds(20), kPatience, [&] { shape("cut left"); }));
  heal();
  expect_works(*initiator_, *target_);
}

TEST_P(NetworkFaults, ADeadlineHoldsWhileTheLinkIsCut) {
  be_patient();
  const Outcome outcome = hit(milliseconds(700), milliseconds(700), [&] { shape("cut"); });
  EXPECT_EQ(outcome.status.error().code, ErrorCode::deadline_exceeded) << text_of(outcome);
  EXPECT_EQ(outcome.remote, is_write() ? RemoteQuiet::unknown : RemoteQuiet::quiet);
  heal();
  expect_works(*initiator_, *target_);
}

TEST_P(NetworkFaults, ACutThatHealsWithinTheHeartbeatsCostsOnlyTime) {
  be_patient();
  bool in_the_middle_of_one = false;
  for (int attempt = 0; attempt < 10 && !in_the_middle_of_one; ++attempt) {
    shape("rate 40M");
    const Transfer transfer = begin(seconds(60));
    const uint64_t before = stats().cut;
    shape("cut");
    const bool over = transfer.done();
    EXPECT_TRUE(eventually([&] { return stats().cut > before; }));  // something was sent into the cut
    shape("heal");
    const Outcome outcome = transfer.wait();
    ASSERT_TRUE(outcome.status.ok()) << text_of(outcome);
    expect_exact();
    in_the_middle_of_one = !over;
  }
  EXPECT_TRUE(in_the_middle_of_one);
}

// The peer's host vanishes without a word, and comes back as another process on the same address.
TEST_P(NetworkFaults, APeerWhoseHostVanishedIsFoundAgainAsAnother) {
  RegionId of_the_old = 0;
  const Outcome outcome = hit(seconds(20), kPatience, [&] {
    of_the_old = target_->region();
    shape("cut");
    ASSERT_TRUE(target_->process().kill().ok());
    target_.emplace(start_target(kBytes, kHeartbeat));
    heal();
  });
  EXPECT_EQ(outcome.status.error().code, ErrorCode::peer_lost) << text_of(outcome);
  // A lane may hear of the new host before the session does.
  const PeerRef peer = must(initiator_->engine().peer(target_->address()));
  EXPECT_TRUE(eventually([&] { return peer.sync(seconds(5)).ok(); }));
  const Outcome stale =
      initiator_->engine().transfer(initiator_->request(target_->address(), of_the_old, GetParam(), seconds(20), 4096));
  EXPECT_EQ(stale.status.error().code, ErrorCode::not_found) << text_of(stale);
  expect_works(*initiator_, *target_);
}

// The same while nothing is under way: the next use finds the connection half open.
TEST_P(NetworkFaults, APeerWhoseHostVanishedWhileIdleIsFoundAgainAsAnother) {
  expect_works(*initiator_, *target_);
  const uint64_t before = must(initiator_->engine().peer(target_->address())).incarnation();
  shape("cut");
  ASSERT_TRUE(target_->process().kill().ok());
  target_.emplace(start_target(kBytes, kHeartbeat));
  heal();
  const PeerRef peer = must(initiator_->engine().peer(target_->address()));
  ASSERT_TRUE(eventually([&] { return peer.connect(seconds(5)).ok() && peer.incarnation() != before; }));
  expect_works(*initiator_, *target_);
}

// The owner's side of a half-open connection: it forgets the peer, and gives its memory back, without a word from it.
TEST_P(NetworkFaults, AnOwnerIsFreeOfAnInitiatorThatVanished) {
  bool in_the_middle_of_one = false;
  for (int attempt = 0; attempt < 10 && !in_the_middle_of_one; ++attempt) {
    shape("rate 40M");
    const Transfer transfer = begin(seconds(20));
    shape("cut");
    const Stopwatch watch;
    EXPECT_TRUE(eventually([&] { return target_->ask("describe").find("\"sessions\":0") != std::string::npos; }));
    EXPECT_LT(watch.elapsed(), kPatience + kSlack);
    EXPECT_EQ(target_->ask("unregister 10000"), "ok");
    const std::vector<std::byte> memory = target_->memory();
    in_the_middle_of_one = in_the_middle(transfer.wait(), kBytes);
    heal();
    const std::string answer = target_->ask("register");
    ASSERT_TRUE(answer.starts_with("ok ")) << answer;
    EXPECT_TRUE(target_->memory() == memory) << "bytes landed after the owner had taken its memory back";
    target_->set_region(std::stoull(answer.substr(3)));
  }
  EXPECT_TRUE(in_the_middle_of_one);
  expect_works(*initiator_, *target_);
}

INSTANTIATE_TEST_SUITE_P(Tcp, NetworkFaults, ::testing::Values(Operation::read, Operation::write),
                         [](const auto& one) { return one.param == Operation::read ? "read" : "write"; });

// ---- notifications

class NetworkFaultsOfNotifications : public OnALink<::testing::Test> {
 protected:
  void SetUp() override {
    OnALink::SetUp();
    if (IsSkipped()) return;
    start(4, 3);
  }
  void start(int our_misses, int their_misses) {
    owner_.reset();
    initiator_.emplace("tcp", 4096, AuthConfig(), milliseconds(kHeartbeat), our_misses);
    EngineConfig config;
    config.engine_id = "owner";
    config.listen = Link::address(Side::left) + ":7100";
    config.allow_open = true;
    config.fabrics = {"tcp"};
    config.heartbeat = milliseconds(kHeartbeat);
    config.missed_heartbeats = their_misses;
    config.logger = make_null_logger();
    const Inside left(*link_, Side::left);
    owner_ = must(Engine::create(config));
  }
  std::vector<Transfer> send(int count, size_t bytes, Duration timeout) {
    const PeerRef peer = must(initiator_->engine().peer(owner_->address()));
    std::vector<Transfer> all;
    for (int i = 0; i < count; ++i)
      all.push_back(
          must(initiator_->engine().notify(peer, {std::to_string(next_++), std::string(bytes, 'n')}, timeout)));
    return all;
  }
  // What has come, by its number.
  const std::vector<int>& taken() {
    for (const ReceivedNotification& one : owner_->notifications()) taken_.push_back(std::stoi(one.notification.name));
    return taken_;
  }
  void expect_in_order_and_once() {
    EXPECT_TRUE(std::is_sorted(taken_.begin(), taken_.end(), std::less_equal<int>()))
        << ::testing::PrintToString(taken_);
  }

  std::optional<Initiator> initiator_;
  std::unique_ptr<Engine> owner_;
  std::vector<int> taken_;
  int next_ = 0;
};

TEST_F(NetworkFaultsOfNotifications, LossDelayAndDuplicatesLoseAndRepeatNone) {
  start(kPatient, kPatient);
  for (const char* command : {"delay 2ms", "loss 0.02", "duplicate 0.02"}) shape(command);
  for (const Transfer& one : send(300, 3000, seconds(60))) EXPECT_EQ(text_of(one.wait()), "ok");
  EXPECT_GT(stats().lost, 0u);
  EXPECT_EQ(taken().size(), 300u);
  expect_in_order_and_once();
}

TEST_F(NetworkFaultsOfNotifications, ACutFailsThoseThatAreNotAcknowledgedAndHeals) {
  bool in_the_middle_of_them = false;
  for (int attempt = 0; attempt < 10 && !in_the_middle_of_them; ++attempt) {
    shape("rate 20M");
    const std::vector<Transfer> all = send(60, 100000, seconds(20));
    EXPECT_TRUE(eventually([&] { return all[10].done(); }));
    shape("cut");
    const Stopwatch since_the_cut;
    int acknowledged = 0;
    std::string why;
    for (const Transfer& one : all) {
      const Outcome outcome = one.wait();
      outcome.status.ok() ? ++acknowledged : (why = text_of(outcome), 0);
    }
    EXPECT_LT(since_the_cut.elapsed(), kPatience + kSlack);
    in_the_middle_of_them = acknowledged > 0 && acknowledged < 60;
    if (in_the_middle_of_them) {
      EXPECT_THAT(why, ContainsRegex("notification to peer \"owner\" \\(10\\.77\\.0\\.1:7100\\) failed after "
                                     "[0-9]+\\.[0-9] s: no heartbeat for [1-9][0-9]*\\.[0-9] s"));
      EXPECT_GE(taken().size(), static_cast<size_t>(acknowledged));
    }
    heal();
  }
  EXPECT_TRUE(in_the_middle_of_them);
  const size_t before = taken().size();
  for (const Transfer& one : send(10, 100, seconds(30))) EXPECT_EQ(text_of(one.wait()), "ok");
  EXPECT_EQ(taken().size(), before + 10);
  expect_in_order_and_once();
}

}  // namespace
}  // namespace kvferry::test
