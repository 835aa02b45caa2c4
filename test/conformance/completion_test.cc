#include <poll.h>

#include <atomic>
#include <future>
#include <thread>

#include "test/conformance/conformance.h"
#include "test/support/eventually.h"
#include "test/support/silent_port.h"
#include "test/support/stopwatch.h"

// How a transfer ends and how one learns of it: wait, poll, callback, completion_fd; timeout, cancel, unregister.

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class Completions : public Conformance {
 protected:
  static constexpr size_t kBytes = size_t{4} << 20;
  void SetUp() override {
    Conformance::SetUp();
    if (IsSkipped()) return;
    make_memory(kBytes);
  }
  TransferRequest to_silence(Duration timeout) {
    TransferRequest asked = request(Operation::write, {pair(0, 0, 100)});
    asked.peer = must(initiator_->peer(silent_.address()));
    asked.timeout = timeout;
    return asked;
  }
  SilentPort silent_;
};

TEST_P(Completions, AreSeenByPolling) {
  for (const size_t length : {size_t{10}, kBytes}) {
    const Transfer transfer = must(initiator_->submit(request(Operation::read, {pair(0, 0, length)})));
    ASSERT_TRUE(eventually([&] { return transfer.done(); }));
    ASSERT_TRUE(transfer.poll().has_value());
    EXPECT_TRUE(transfer.poll()->status.ok());
    EXPECT_EQ(transfer.poll()->bytes_done, length);
    EXPECT_EQ(transfer.poll()->spans_done, 1u);
  }
}

TEST_P(Completions, AreWaitedForByAnyNumberOfThreads) {
  const Transfer transfer = must(initiator_->submit(request(Operation::read, {pair(0, 0, kBytes)})));
  std::vector<std::future<bool>> waits;
  for (int i = 0; i < 6; ++i)
    waits.push_back(std::async(std::launch::async, [&] { return transfer.wait().status.ok(); }));
  for (auto& wait : waits) EXPECT_TRUE(wait.get());
}

TEST_P(Completions, CallBackOnceEach) {
  constexpr int kCount = 100;
  std::atomic<int> called{0};
  for (int i = 0; i < kCount; ++i) {
    const Transfer transfer =
        must(initiator_->submit(request(Operation::write, {pair(0, 0, i % 2 == 0 ? 100 : size_t{1} << 20)})));
    const auto count = [&](const Outcome& outcome) { called += outcome.status.ok() ? 1 : 1000; };
    transfer.on_done(count);
    transfer.on_done(count);
  }
  ASSERT_TRUE(eventually([&] { return called.load() >= 2 * kCount; }));
  EXPECT_EQ(called.load(), 2 * kCount);
}

TEST_P(Completions, MayStartTheNextTransferInACallback) {
  std::promise<Outcome> last;
  std::function<void(int)> step = [&](int left) {
    auto transfer = initiator_->submit(request(Operation::write, {pair(0, 0, left % 2 == 0 ? 100 : kBytes)}));
    if (!transfer.ok()) return last.set_value(Outcome{transfer.error(), {}, 0, 0, {}});
    transfer->on_done([&, left](const Outcome& outcome) {
      if (left == 0 || !outcome.status.ok()) return last.set_value(outcome);
      step(left - 1);
    });
  };
  step(20);
  auto future = last.get_future();
  ASSERT_EQ(future.wait_for(seconds(60)), std::future_status::ready);
  const Outcome outcome = future.get();
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
}

TEST_P(Completions, RefuseToWaitInACallback) {
  const Transfer other = must(initiator_->submit(to_silence(seconds(30))));
  std::promise<std::vector<Status>> asked;
  // One that ends when told to, and not before the callback is there.
  const Transfer first = must(initiator_->submit(to_silence(seconds(30))));
  first.on_done([&](const Outcome&) {
    const Outcome sync = initiator_->transfer(request(Operation::read, {pair(0, 0, 10)}));
    const Outcome told = initiator_->notify_and_wait(peer_, {"n", "x"});
    asked.set_value(
        {other.wait().status, sync.status, told.status, must(initiator_->peer(silent_.address())).connect(seconds(1))});
  });
  first.cancel();
  auto future = asked.get_future();
  ASSERT_EQ(future.wait_for(seconds(30)), std::future_status::ready);
  for (const Status& status : future.get()) {
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, ErrorCode::invalid_argument);
    EXPECT_NE(status.error().to_string().find("callbacks"), std::string::npos) << status.error().to_string();
  }
  other.cancel();
}

// I4: what unregister says in a callback is as true as elsewhere, though it cannot wait there.
TEST_P(Completions, UnregisterInACallbackSaysOnlyWhatIsTrue) {
  Buffer own = make_buffer(GetParam().initiator, 1000);
  Region region = must(initiator_->register_memory(own.base(), 1000, own.kind(), kPrivate));
  std::promise<Status> asked;
  must(initiator_->submit(to_silence(milliseconds(20)))).on_done([&](const Outcome&) {
    asked.set_value(region.unregister());
  });
  auto future = asked.get_future();
  ASSERT_EQ(future.wait_for(seconds(30)), std::future_status::ready);
  EXPECT_TRUE(future.get().ok());
  EXPECT_TRUE(initiator_->register_memory(own.base(), 1000, own.kind(), kPrivate).ok());
}

TEST_P(Completions, WakeAnEventLoop) {
  const int fd = must(initiator_->completion_fd());
  std::vector<uint64_t> wanted;
  for (int i = 0; i < 50; ++i)
    wanted.push_back(
        must(initiator_->submit(request(Operation::write, {pair(0, 0, i % 2 == 0 ? 100 : size_t{1} << 20)}))).id());
  std::vector<uint64_t> got;
  while (got.size() < wanted.size()) {
    pollfd event{fd, POLLIN, 0};
    ASSERT_EQ(::poll(&event, 1, 40000), 1) << got.size() << " of " << wanted.size();
    for (const uint64_t id : initiator_->take_completed()) got.push_back(id);
  }
  std::sort(got.begin(), got.end());
  std::sort(wanted.begin(), wanted.end());
  EXPECT_EQ(got, wanted);
  pollfd event{fd, POLLIN, 0};
  EXPECT_EQ(::poll(&event, 1, 0), 0);
}

TEST_P(Completions, ComeByTheDeadlineOfEachTransfer) {
  const SystemClock clock;
  const Stopwatch watch;
  std::vector<Transfer> all;
  const TimePoint begin = clock.now();
  for (const int limit : {300, 100, 200}) all.push_back(must(initiator_->submit(to_silence(milliseconds(limit)))));
  const Outcome second = all[1].wait();
  EXPECT_GE(clock.now() - begin, milliseconds(100));
  EXPECT_LT(watch.elapsed(), seconds(2));
  ASSERT_FALSE(second.status.ok());
  EXPECT_EQ(second.status.error().code, ErrorCode::deadline_exceeded);
  EXPECT_EQ(second.remote, RemoteQuiet::quiet);  // nothing had begun
  EXPECT_NE(second.status.error().to_string().find(silent_.address()), std::string::npos);
  const std::string said = second.status.error().to_string();
  const size_t after = said.find("failed after ");
  ASSERT_NE(after, std::string::npos) << said;
  EXPECT_GE(std::stod(said.substr(after + 13)), 0.1) << said;
  EXPECT_FALSE(all[0].wait().status.ok());
  EXPECT_FALSE(all[2].wait().status.ok());
  EXPECT_LT(watch.elapsed(), seconds(3));
}

TEST_P(Completions, GiveUpWaitingButNotTheTransfer) {
  const SystemClock clock;
  const TimePoint began = clock.now();
  const Transfer transfer = must(initiator_->submit(to_silence(milliseconds(400))));
  const bool gave_up = !transfer.wait_for(milliseconds(20)).has_value();
  const bool ended = transfer.done();
  if (clock.now() - began < milliseconds(400)) {  // else this thread has slept over the deadline
    EXPECT_TRUE(gave_up);
    EXPECT_FALSE(ended);
  }
  const auto outcome = transfer.wait_for(seconds(30));
  ASSERT_TRUE(outcome.has_value());
  EXPECT_EQ(outcome->status.error().code, ErrorCode::deadline_exceeded);
}

TEST_P(Completions, FollowACancelThatComesBeforeAnythingMoved) {
  const Transfer transfer = must(initiator_->submit(to_silence(seconds(60))));
  transfer.cancel();
  const auto outcome = transfer.wait_for(seconds(30));
  ASSERT_TRUE(outcome.has_value());
  EXPECT_EQ(outcome->status.error().code, ErrorCode::cancelled);
  EXPECT_EQ(outcome->remote, RemoteQuiet::quiet);
  transfer.cancel();
}

// Cancels at every stage: whatever the outcome, it comes soon, our memory is quiet, and a quiet owner stays as it is.
TEST_P(Completions, FollowACancelAtAnyMoment) {
  int cancelled = 0;
  for (int round = 0; round < 60 || (cancelled == 0 && round < 1000); ++round) {
    const Operation operation = kBoth[round % 2];
    const Transfer transfer = must(initiator_->submit(request(operation, {pair(0, 0, kBytes)})));
    const SystemClock clock;
    const TimePoint until = clock.now() + std::chrono::microseconds(round % 50 * 30);
    while (clock.now() < until) std::this_thread::yield();
    transfer.cancel();
    const auto ours = operation == Operation::read ? local_->load() : std::vector<std::byte>();
    const auto outcome = transfer.wait_for(seconds(30));
    ASSERT_TRUE(outcome.has_value());
    if (operation == Operation::read) {
      ASSERT_TRUE(local_->holds(ours)) << "a cancelled read wrote on";
    }
    if (!outcome->status.ok()) {
      ++cancelled;
      ASSERT_EQ(outcome->status.error().code, ErrorCode::cancelled) << outcome->status.error().to_string();
    }
    if (operation == Operation::write && outcome->remote == RemoteQuiet::quiet) {
      const auto theirs = remote_->load();
      local_->store(pattern(kBytes, static_cast<uint64_t>(round) + 100));
      ASSERT_TRUE(must(initiator_->notify(peer_, {"n", "x"})).wait().status.ok());
      ASSERT_TRUE(remote_->holds(theirs)) << "a cancelled write wrote on";
    }
  }
  EXPECT_GT(cancelled, 0);
  check(Operation::read, {pair(0, 0, kBytes)});
}

TEST_P(Completions, FollowTheUnregisteringOfTheLocalRegion) {
  int ended = 0;
  for (int round = 0; round < 30 || (ended == 0 && round < 1000); ++round) {
    const Operation operation = kBoth[round % 2];
    const Transfer transfer = must(initiator_->submit(request(operation, {pair(0, 0, kBytes)})));
    ASSERT_TRUE(local_region_.unregister(seconds(30)).ok());
    const auto ours = local_->load();
    const auto outcome = transfer.wait_for(seconds(30));
    ASSERT_TRUE(outcome.has_value());
    ASSERT_TRUE(local_->holds(ours));
    if (!outcome->status.ok()) {
      ++ended;
      EXPECT_EQ(outcome->status.error().code, ErrorCode::cancelled) << outcome->status.error().to_string();
    }
    local_region_ = must(initiator_->register_memory(local_->base(), kBytes, local_->kind(), kPrivate));
  }
  EXPECT_GT(ended, 0);
}

TEST_P(Completions, FollowTheUnregisteringOfTheRemoteRegion) {
  int ended = 0;
  for (int round = 0; round < 30 || (ended == 0 && round < 1000); ++round) {
    const Operation operation = kBoth[round % 2];
    // On a busy machine one is over before this thread runs again; of many, some still wait.
    std::vector<Transfer> all;
    while (all.size() < (round < 30 ? 1 : 8))
      all.push_back(must(initiator_->submit(request(operation, {pair(0, 0, kBytes)}))));
    const SystemClock clock;
    const TimePoint until = clock.now() + std::chrono::microseconds(round % 30 * 50);
    while (clock.now() < until) std::this_thread::yield();
    ASSERT_TRUE(remote_region_.unregister(seconds(30)).ok());
    const auto theirs = remote_->load();
    for (const Transfer& transfer : all) {
      const auto outcome = transfer.wait_for(seconds(30));
      ASSERT_TRUE(outcome.has_value());
      if (outcome->status.ok()) continue;
      ++ended;
      EXPECT_EQ(outcome->status.error().code, ErrorCode::not_found) << outcome->status.error().to_string();
    }
    ASSERT_TRUE(remote_->holds(theirs)) << "written to after unregister";
    remote_region_ = must(owner_->register_memory(remote_->base(), kBytes, remote_->kind(), kRemoteReadWrite));
  }
  EXPECT_GT(ended, 0);
  check(Operation::write, {pair(0, 0, kBytes)});
}

TEST_P(Completions, EndAllTransfersWithTheEngine) {
  std::vector<Transfer> all;
  for (int i = 0; i < 10; ++i) all.push_back(must(initiator_->submit(to_silence(seconds(60)))));
  all.push_back(must(initiator_->submit(request(Operation::write, {pair(0, 0, kBytes)}))));
  initiator_.reset();
  for (const Transfer& transfer : all) EXPECT_TRUE(transfer.done());
  EXPECT_FALSE(all[0].poll()->status.ok());
  EXPECT_TRUE(local_region_.unregister(seconds(30)).ok());
  EXPECT_FALSE(peer_.connect(seconds(1)).ok());
}

TEST_P(Completions, CountSpansAndNeverMoreThanThereAre) {
  std::vector<Pair> pairs;
  for (uint64_t i = 0; i < 3; ++i) pairs.push_back(pair(i * 1300000, i * 1300007, 1300000 - 8));
  const Outcome outcome = run(Operation::write, pairs);
  ASSERT_TRUE(outcome.status.ok());
  EXPECT_EQ(outcome.spans_done, 3u);
}

INSTANTIATE_TEST_SUITE_P(Fabrics, Completions, kAllCases, case_name);

}  // namespace
}  // namespace kvferry::test
