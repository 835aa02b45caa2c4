#include "test/support/link/relay.h"

#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr TimePoint kStart{seconds(1000)};

Direction shaped(const Shape& shape, uint64_t seed = 1) {
  Direction direction(seed);
  direction.set_shape(shape);
  return direction;
}

std::vector<int> survivors(double loss, uint64_t seed, int packets) {
  Direction direction = shaped({.loss = loss}, seed);
  std::vector<int> out;
  for (int i = 0; i < packets; ++i) {
    direction.offer(std::to_string(i), kStart);
    if (auto packet = direction.take(kStart)) out.push_back(std::stoi(*packet));
  }
  return out;
}

TEST(Direction, PassesEverythingAtOnceWithoutAShape) {
  EXPECT_EQ(survivors(0, 1, 1000).size(), 1000u);
  EXPECT_EQ(Direction(1).next_due(), kNever);
}

TEST(Direction, LosesTheAskedShareAndTheSameForTheSameSeed) {
  const auto first = survivors(0.1, 5, 10000);
  EXPECT_EQ(first, survivors(0.1, 5, 10000));
  EXPECT_NE(first, survivors(0.1, 6, 10000));
  EXPECT_NEAR(static_cast<double>(first.size()), 9000, 150);
  EXPECT_TRUE(survivors(1, 1, 1000).empty());
}

TEST(Direction, HoldsPacketsForTheDelay) {
  Direction direction = shaped({.delay = milliseconds(5)});
  direction.offer("a", kStart);
  EXPECT_EQ(direction.next_due(), kStart + milliseconds(5));
  EXPECT_FALSE(direction.take(kStart + milliseconds(5) - Duration(1)));
  EXPECT_EQ(direction.take(kStart + milliseconds(5)), "a");
}

TEST(Direction, SpacesPacketsByTheRate) {
  Direction direction = shaped({.bytes_per_second = 1000});
  direction.offer(std::string(100, 'a'), kStart);
  direction.offer(std::string(200, 'b'), kStart);
  EXPECT_EQ(direction.next_due(), kStart + milliseconds(100));
  EXPECT_TRUE(direction.take(kStart + milliseconds(100)));
  EXPECT_EQ(direction.next_due(), kStart + milliseconds(300));
  EXPECT_TRUE(direction.take(kStart + milliseconds(300)));
  direction.offer(std::string(100, 'c'), kStart + seconds(10));
  EXPECT_EQ(direction.next_due(), kStart + seconds(10) + milliseconds(100)) << "an idle line saves nothing up";
}

TEST(Direction, KeepsTheOrderWhenTheDelayShrinks) {
  Direction direction = shaped({.delay = milliseconds(50)});
  direction.offer("first", kStart);
  direction.set_shape({.delay = milliseconds(1)});
  direction.offer("second", kStart);
  EXPECT_FALSE(direction.take(kStart + milliseconds(49)));
  EXPECT_EQ(direction.take(kStart + milliseconds(50)), "first");
  EXPECT_EQ(direction.take(kStart + milliseconds(50)), "second");
}

TEST(Direction, LosesWhatIsOnItsWayWhenCut) {
  Direction direction = shaped({.delay = milliseconds(50)});
  direction.offer("on its way", kStart);
  direction.set_shape({.cut = true});
  direction.offer("into the cut", kStart);
  direction.set_shape({});
  direction.offer("after", kStart);
  EXPECT_EQ(direction.take(kStart + seconds(1)), "after");
  EXPECT_EQ(direction.next_due(), kNever);
  EXPECT_EQ(direction.counters().cut, 2u);
  EXPECT_EQ(direction.counters().forwarded, 1u);
}

TEST(Direction, SendsDuplicates) {
  Direction direction = shaped({.duplicate = 1});
  direction.offer("twice", kStart);
  EXPECT_EQ(direction.take(kStart), "twice");
  EXPECT_EQ(direction.take(kStart), "twice");
  EXPECT_FALSE(direction.take(kStart));
}

TEST(Direction, DropsTheTailAboveItsQueue) {
  constexpr size_t kQueue = 8 << 20;
  Direction direction = shaped({.bytes_per_second = 1, .queue = kQueue});
  const std::string packet(60000, 'x');
  for (size_t i = 0; i < 2 * kQueue / packet.size(); ++i) direction.offer(packet, kStart);
  EXPECT_GT(direction.counters().overflowed, 100u);
  size_t held = 0;
  while (auto taken = direction.take(kNever)) held += taken->size();
  EXPECT_LE(held, kQueue);
  EXPECT_GT(held, kQueue - packet.size());
}

TEST(Relay, ShapesBothDirectionsOrOne) {
  Relay relay(1);
  EXPECT_TRUE(relay.command("loss 0.25").ok());
  EXPECT_TRUE(relay.command("delay 5ms left").ok());
  EXPECT_TRUE(relay.command("rate 1M right").ok());
  EXPECT_TRUE(relay.command("queue 64K left").ok());
  EXPECT_EQ(relay.from(0).shape().queue, 64u << 10);
  EXPECT_TRUE(relay.command("cut right").ok());
  EXPECT_EQ(relay.from(0).shape().loss, 0.25);
  EXPECT_EQ(relay.from(1).shape().loss, 0.25);
  EXPECT_EQ(relay.from(0).shape().delay, milliseconds(5));
  EXPECT_EQ(relay.from(1).shape().delay, Duration(0));
  EXPECT_EQ(relay.from(0).shape().bytes_per_second, 0u);
  EXPECT_EQ(relay.from(1).shape().bytes_per_second, 1u << 20);
  EXPECT_FALSE(relay.from(0).shape().cut);
  EXPECT_TRUE(relay.from(1).shape().cut);
  EXPECT_TRUE(relay.command("heal").ok());
  EXPECT_FALSE(relay.from(1).shape().cut);
}

TEST(Relay, RefusesWhatIsNoCommandAndChangesNothing) {
  Relay relay(1);
  for (const char* line : {"", "left", "loss", "loss 2", "loss -1", "loss x", "delay soon", "rate fast", "cut it",
                           "heal 1", "loss 0.1 middle", "stats now"})
    EXPECT_FALSE(relay.command(line).ok()) << line;
  EXPECT_EQ(relay.from(0).shape().loss, 0);
}

TEST(Relay, SumsItsFigures) {
  Relay relay(1);
  relay.from(0).offer("a", kStart);
  relay.from(0).take(kStart);
  ASSERT_TRUE(relay.command("cut left").ok());
  relay.from(0).offer("b", kStart);
  EXPECT_EQ(*relay.command("stats"), "forwarded=1 lost=0 duplicated=0 cut=1 overflowed=0");
  EXPECT_EQ(*relay.command("stats right"), "forwarded=0 lost=0 duplicated=0 cut=0 overflowed=0");
}

}  // namespace
}  // namespace kvferry::test
