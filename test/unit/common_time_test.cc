#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <set>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "common/fd.h"
#include "common/log.h"
#include "common/random.h"

namespace kvferry {
namespace {

using std::chrono::seconds;

TEST(After, SaturatesAtNever) {
  const TimePoint now{seconds(5)};
  EXPECT_EQ(after(now, seconds(1)), TimePoint(seconds(6)));
  EXPECT_EQ(after(now, Duration::max()), kNever);
  EXPECT_EQ(after(kNever, seconds(1)), kNever);
  EXPECT_EQ(after(kNever, -seconds(1)), kNever) << "no deadline stays none";
}

TEST(SystemClock, DoesNotGoBack) {
  const SystemClock clock;
  const TimePoint first = clock.now();
  EXPECT_LE(first, clock.now());
}

TEST(SeededRandom, RepeatsItselfForTheSameSeed) {
  SeededRandom one(1);
  SeededRandom again(1);
  SeededRandom two(2);
  const uint64_t first = one.next();
  EXPECT_EQ(first, again.next());
  EXPECT_NE(first, two.next());
  EXPECT_EQ(SeededRandom(0).next(), 0xe220a8397b1dcdafu) << "failing seeds are replayed by later builds";
}

TEST(Random, StaysBelowItsBoundAndReachesAllOfIt) {
  SeededRandom random(3);
  std::set<uint64_t> seen;
  for (int i = 0; i < 1000; ++i) seen.insert(random.below(5));
  EXPECT_EQ(seen, (std::set<uint64_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(random.below(1), 0u);
}

TEST(RandomDeathTest, HasNothingBelowZero) {
  SeededRandom random(3);
  EXPECT_DEATH(random.below(0), "bound > 0");
}

TEST(Random, MakesTokensOfAnyLength) {
  SystemRandom random;
  for (const size_t size : {0u, 1u, 7u, 8u, 9u, 33u}) EXPECT_EQ(random.token(size).size(), size);
  EXPECT_NE(random.token(16), random.token(16));
}

bool is_open(int fd) {
  return ::fcntl(fd, F_GETFD) >= 0;
}

TEST(UniqueFd, ClosesWhatItOwnsOnce) {
  UniqueFd first(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  UniqueFd second(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const int first_number = first.get();
  const int second_number = second.get();
  first = std::move(second);
  EXPECT_FALSE(is_open(first_number));
  EXPECT_TRUE(is_open(second_number));
  const int released = first.release();
  EXPECT_FALSE(first.valid());
  EXPECT_TRUE(is_open(released));
  { const UniqueFd last(released); }
  EXPECT_FALSE(is_open(released));
}

bool is_readable(int fd) {
  pollfd event{fd, POLLIN, 0};
  return ::poll(&event, 1, 0) == 1;
}

TEST(EventFd, IsSignalledUntilDrained) {
  auto event = EventFd::create();
  ASSERT_TRUE(event.ok());
  EXPECT_FALSE(is_readable(event->fd()));
  event->signal();
  event->signal();
  EXPECT_TRUE(is_readable(event->fd()));
  event->drain();
  EXPECT_FALSE(is_readable(event->fd()));
  event->drain();  // does not block on nothing
}

class ListLogger final : public Logger {
 public:
  using Logger::Logger;
  std::vector<std::string> lines;

 private:
  void line(LogLevel, std::string_view text) override { lines.emplace_back(text); }
};

TEST(Logger, FormatsOnlyWhatItsLevelLetsThrough) {
  ListLogger logger(LogLevel::warning);
  logger.debug("{}", 1);
  logger.info("{}", 2);
  logger.warning("{} of {}", 3, 4);
  logger.error("{}", 5);
  EXPECT_EQ(logger.lines, (std::vector<std::string>{"3 of 4", "5"}));
  ListLogger silent(LogLevel::off);
  silent.error("{}", 1);
  EXPECT_TRUE(silent.lines.empty());
}

// A peer's name, for one: it must not forge lines, nor move the cursor of who reads them.
TEST(Logger, WhatStrangersSayStaysInItsLine) {
  ListLogger logger(LogLevel::info);
  logger.info("peer {} left", "a\n2026-01-01 error kvferry: \x1b[2Jforged\x7f");
  ASSERT_EQ(logger.lines.size(), 1u);
  EXPECT_EQ(logger.lines[0], "peer a\\x0a2026-01-01 error kvferry: \\x1b[2Jforged\\x7f left");
  EXPECT_EQ(one_line("plain, \u00e9"), "plain, \u00e9");
}

TEST(Logger, NamesALevelThatItDoesNotKnow) {
  EXPECT_EQ(*parse_log_level("info"), LogLevel::info);
  const auto wrong = parse_log_level("loud");
  ASSERT_FALSE(wrong.ok());
  EXPECT_NE(wrong.error().message.find("loud"), std::string::npos);
}

}  // namespace
}  // namespace kvferry
