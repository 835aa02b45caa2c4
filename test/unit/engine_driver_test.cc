#include <gtest/gtest.h>

#include <vector>

#include "engine/io/fair_turns.h"
#include "engine/run/driver.h"
#include "test/support/eventually.h"
#include "test/support/manual_loop.h"

namespace kvferry {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class DriverTest : public ::testing::Test {
 protected:
  static constexpr int kWaits = 200;
  // What holds for most waits of a batch as long as this thread keeps its core: a machine that gives it away after each
  // of them shows nothing, and not in every batch.
  template <class Batch>
  static bool in_some_batch(const Batch& holds) {
    for (int batch = 0; batch < 50; ++batch)
      if (holds()) return true;
    return false;
  }

  std::unique_ptr<EpollLoop> loop_ = std::move(EpollLoop::create(std::make_shared<SystemClock>())).value();
  std::unique_ptr<LoopDriver> driver_ = std::move(LoopDriver::create(*loop_)).value();
};

TEST_F(DriverTest, RunsWhatIsPostedWithoutAWaiter) {
  for (int i = 0; i < 200; ++i) {
    std::atomic<bool> ran{false};
    driver_->post([&] { ran.store(driver_->owned_here()); });
    ASSERT_TRUE(test::eventually([&] { return ran.load(); }));
  }
}

TEST_F(DriverTest, LetsTheWaiterRunTheLoop) {
  EXPECT_TRUE(in_some_batch([&] {
    int here = 0;
    for (int i = 0; i < kWaits; ++i) {
      std::atomic<bool> done{false};
      std::thread::id ran_in;
      driver_->post(
          [&] {
            ran_in = std::this_thread::get_id();
            done.store(true);
            driver_->wake_waiters();
          },
          true);
      driver_->wait(done, kNever);
      here += ran_in == std::this_thread::get_id();
    }
    return here > kWaits / 2;  // not all: the progress thread may be quicker
  }));
}

// A call that takes longer than the progress thread's shortest absence: if the loop changed hands around each of them,
// every one would pay for four thread switches.
TEST_F(DriverTest, LeavesTheLoopToWaitsThatFollowEachOtherClosely) {
  EXPECT_TRUE(in_some_batch([&] {
    int taken_over = 0;  // the loop had to be taken from the progress thread first
    for (int i = 0; i < kWaits; ++i) {
      taken_over += loop_->waiting();
      std::atomic<bool> done{false};
      driver_->post([&] { loop_->call_at(loop_->now() + std::chrono::microseconds(300), [&] { done.store(true); }); },
                    true);
      driver_->wait(done, kNever);
    }
    return taken_over < kWaits / 2;
  }));
}

TEST_F(DriverTest, CallsThatEndAtOnceDoNotKeepTimersFromTheirTurn) {
  std::atomic<bool> fired{false};
  driver_->post([&] { loop_->call_at(loop_->now() + milliseconds(5), [&] { fired.store(true); }); });
  const TimePoint began = loop_->now();
  while (!fired.load() && loop_->now() - began < seconds(60)) {
    std::atomic<bool> done{false};
    driver_->post([&] { done.store(true); }, true);
    driver_->wait(done, kNever);
  }
  EXPECT_TRUE(fired.load());
}

// The waiter leaves as soon as it is done; what is put off until the loop sleeps is not lost with it.
TEST_F(DriverTest, RunsWhatIsPutOffUntilTheLoopSleepsWhoeverLetsItSleep) {
  std::atomic<int> ran{0};
  for (int i = 1; i <= 200; ++i) {
    std::atomic<bool> done{false};
    driver_->post(
        [&] {
          loop_->before_sleep([&] { ran.fetch_add(1); });
          done.store(true);
        },
        true);
    driver_->wait(done, kNever);
    if (i % 50 != 0) continue;
    ASSERT_TRUE(test::eventually([&] { return ran.load() == i; }));
  }
}

// Else it would sleep until something else happens, a heartbeat for one.
TEST_F(DriverTest, DoesNotSleepWhenWhatWasPutOffIsWhatItWaitsFor) {
  for (int i = 0; i < 100; ++i) {
    std::atomic<bool> done{false};
    driver_->post(
        [&] {
          loop_->before_sleep([&] {
            done.store(true);
            driver_->wake_waiters();
          });
        },
        true);
    const TimePoint began = loop_->now();
    driver_->wait(done, began + seconds(120));
    ASSERT_LT(loop_->now() - began, seconds(45));
  }
}

// By a thread that has nothing to do with the loop, at any moment of the waiter's way to sleep.
TEST_F(DriverTest, HearsOfWhatAnotherThreadHasDone) {
  constexpr int kRounds = 100000;
  std::atomic<int> round{0};
  std::atomic<bool> done{false};
  std::thread other([&] {
    for (int i = 1; i <= kRounds; ++i) {
      while (round.load() != i) std::this_thread::yield();
      for (std::atomic<int> spin{0}; spin < i % 500;) ++spin;
      done.store(true, std::memory_order_release);
      driver_->wake_waiters();
    }
  });
  int late = 0;
  for (int i = 1; i <= kRounds; ++i) {
    done.store(false);
    round.store(i);
    const TimePoint deadline = loop_->now() + seconds(1);
    driver_->wait(done, deadline);
    while (!done.load()) std::this_thread::yield();
    late += loop_->now() >= deadline;
  }
  other.join();
  EXPECT_EQ(late, 0) << "told when the deadline came";
}

TEST_F(DriverTest, StopsWaitingAtTheDeadline) {
  const std::atomic<bool> never{false};
  const TimePoint began = loop_->now();
  driver_->wait(never, began + milliseconds(50));
  EXPECT_GE(loop_->now() - began, milliseconds(50));
  EXPECT_LT(loop_->now() - began, seconds(60));
}

TEST_F(DriverTest, RunsTimersWhoeverOwnsTheLoop) {
  std::atomic<bool> early{false};
  std::atomic<bool> late{false};
  driver_->post([&] {
    loop_->call_at(loop_->now() + milliseconds(20), [&] { early.store(true), driver_->wake_waiters(); });
    loop_->call_at(loop_->now() + milliseconds(120), [&] { late.store(true); });
  });
  driver_->wait(early, kNever);
  EXPECT_TRUE(test::eventually([&] { return late.load(); }));
}

// Threads wait, post and leave at once, in every order: everything runs, once, in one thread at a time.
TEST_F(DriverTest, RunsEverythingOnceWhenManyThreadsPostAndWait) {
  constexpr int kThreads = 6;
  constexpr int kRounds = 500;
  int unguarded = 0;  // only the loop's owner may touch it: ThreadSanitizer watches
  std::atomic<int> loose{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < kRounds; ++i) {
        if ((i + t) % 3 == 0) {
          driver_->post([&] { ++unguarded, ++loose; });
          continue;
        }
        std::atomic<bool> done{false};
        driver_->post(
            [&] {
              ++unguarded;
              ++loose;
              done.store(true);
              driver_->wake_waiters();
            },
            i % 2 == 0);
        driver_->wait(done, kNever);
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(test::eventually([&] { return loose.load() == kThreads * kRounds; }));
  driver_->stop();
  EXPECT_EQ(unguarded, kThreads * kRounds);
}

TEST_F(DriverTest, RunsWhatIsPostedBeforeItStops) {
  std::atomic<int> ran{0};
  for (int i = 0; i < 100; ++i) driver_->post([&] { ++ran; });
  driver_->stop();
  EXPECT_EQ(ran.load(), 100);
}

// ---- work that peers ask for, turn by turn

class FairTurnsTest : public ::testing::Test {
 protected:
  void ask(const std::string& who, Duration takes) {
    turns_->run(who, [this, who, takes] {
      ran_.push_back(who);
      loop_.let_pass(takes);
    });
  }
  std::vector<std::string> ran() { return std::exchange(ran_, {}); }
  test::ManualLoop loop_;
  std::optional<FairTurns<std::string>> turns_{std::in_place, loop_, milliseconds(1)};
  std::vector<std::string> ran_;
};

TEST_F(FairTurnsTest, RunWhatIsShortAtOnce) {
  for (int i = 0; i < 100; ++i) ask("a", Duration(0));
  EXPECT_EQ(ran_.size(), 100u);
}

TEST_F(FairTurnsTest, LetOthersInBetweenWhatIsLong) {
  for (int i = 0; i < 4; ++i) ask("a", milliseconds(10));
  ask("b", milliseconds(10));
  ask("b", milliseconds(10));
  EXPECT_EQ(ran(), std::vector<std::string>{"a"});
  EXPECT_EQ(turns_->waiting(), 5u);
  std::vector<std::string> order;
  for (int i = 0; i < 5; ++i) {
    loop_.run_one_turn();
    ASSERT_EQ(ran_.size(), 1u) << "one a turn";
    order.push_back(ran().front());
  }
  EXPECT_EQ(order, (std::vector<std::string>{"a", "b", "a", "b", "a"}));
  EXPECT_EQ(turns_->waiting(), 0u);
  loop_.run_one_turn();
  ask("a", milliseconds(10));
  EXPECT_EQ(ran(), std::vector<std::string>{"a"}) << "at once again";
}

TEST_F(FairTurnsTest, MayEndInTheMiddle) {
  ask("a", milliseconds(10));
  turns_->run("a", [this] { turns_.reset(); });
  ask("a", milliseconds(10));
  while (loop_.run_one_turn()) {
  }
  EXPECT_EQ(ran(), std::vector<std::string>{"a"});
}

}  // namespace
}  // namespace kvferry
