#include "http/deadlines.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

namespace kvferry::http {
namespace {

using std::chrono::seconds;

class ManualClock final : public Clock {
 public:
  TimePoint now() const override { return now_; }
  void advance(Duration span) { now_ += span; }

 private:
  TimePoint now_{seconds(1000)};
};

struct DeadlinesTest : testing::Test {
  ManualClock clock;
  boost::asio::io_context loop;
  Deadlines deadlines{loop, clock};
};

TEST_F(DeadlinesTest, RunsWhatIsDueOnce) {
  int runs = 0;
  Deadline deadline(deadlines, [&] { ++runs; });
  deadline.set_in(seconds(5));
  deadlines.sweep();
  EXPECT_EQ(runs, 0);
  clock.advance(seconds(5));
  deadlines.sweep();
  deadlines.sweep();
  EXPECT_EQ(runs, 1);
}

TEST_F(DeadlinesTest, MovedAndClearedOnesDoNotRun) {
  int runs = 0;
  Deadline moved(deadlines, [&] { ++runs; });
  Deadline cleared(deadlines, [&] { ++runs; });
  moved.set_in(seconds(1));
  cleared.set_in(seconds(1));
  moved.set_in(seconds(10));
  cleared.clear();
  clock.advance(seconds(2));
  deadlines.sweep();
  EXPECT_EQ(runs, 0);
  clock.advance(seconds(9));
  deadlines.sweep();
  EXPECT_EQ(runs, 1);
}

TEST_F(DeadlinesTest, OneIsArmedUntilItRunsOrIsCleared) {
  bool while_running = true;
  Deadline deadline(deadlines, [&] { while_running = deadline.armed(); });
  EXPECT_FALSE(deadline.armed());
  deadline.set_in(seconds(1));
  deadlines.sweep();
  EXPECT_TRUE(deadline.armed());
  clock.advance(seconds(1));
  deadlines.sweep();
  EXPECT_FALSE(while_running);
  deadline.set_in(seconds(1));
  deadline.clear();
  EXPECT_FALSE(deadline.armed());
}

TEST_F(DeadlinesTest, OneMayDestroyItselfAndOthers) {
  std::vector<std::unique_ptr<Deadline>> all(3);
  int runs = 0;
  for (auto& deadline : all) {
    deadline = std::make_unique<Deadline>(deadlines, [&] {
      ++runs;
      for (auto& other : all) other.reset();
    });
    deadline->set_in(seconds(1));
  }
  clock.advance(seconds(1));
  deadlines.sweep();
  EXPECT_EQ(runs, 1);
}

TEST_F(DeadlinesTest, OneMayArmItselfAgain) {
  int runs = 0;
  std::unique_ptr<Deadline> deadline;
  deadline = std::make_unique<Deadline>(deadlines, [&] {
    if (++runs < 3) deadline->set_in(seconds(1));
  });
  deadline->set_in(seconds(1));
  for (int i = 0; i < 5; ++i) {
    clock.advance(seconds(1));
    deadlines.sweep();
  }
  EXPECT_EQ(runs, 3);
}

}  // namespace
}  // namespace kvferry::http
