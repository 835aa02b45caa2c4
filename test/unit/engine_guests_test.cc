#include <gtest/gtest.h>

#include <vector>

#include "engine/fabric/plugin/guests.h"

// I4 at an owner whose memory peers reach by themselves: when memory may be given back.

namespace kvferry::plugin {
namespace {

constexpr uint64_t kNeverAgain = UINT64_MAX;

class GuestsTest : public ::testing::Test {
 protected:
  bool fence_holds_ = true;
  std::vector<uint64_t> fenced_;
  Guests guests_{[this](uint64_t client) {
    fenced_.push_back(client);
    return fence_holds_;
  }};
};

TEST_F(GuestsTest, NobodyHasToBeWaitedFor) {
  EXPECT_TRUE(guests_.quiet_since(7));
  EXPECT_FALSE(guests_.admits(1));
}

TEST_F(GuestsTest, EachHasToSayThatItIsThrough) {
  guests_.came(1, 100);
  guests_.came(2, 200);
  EXPECT_FALSE(guests_.quiet_since(5));
  guests_.quiet(1, 5);
  guests_.quiet(2, 4);
  EXPECT_FALSE(guests_.quiet_since(5));
  guests_.quiet(2, 6);
  EXPECT_TRUE(guests_.quiet_since(5));
  guests_.quiet(2, 3);  // an old word takes nothing back
  EXPECT_TRUE(guests_.quiet_since(5));
  EXPECT_FALSE(guests_.quiet_since(6)) << "1 has not said so";
  EXPECT_TRUE(fenced_.empty());
}

TEST_F(GuestsTest, WhoIsLateLosesItsConnectionOnceAndComesBackWhenItHasSaidWhy) {
  guests_.came(1, 100);
  guests_.came(2, 200);
  guests_.quiet(2, 5);
  guests_.fence_late(5);
  guests_.fence_late(5);
  EXPECT_EQ(fenced_, std::vector<uint64_t>{100});
  EXPECT_TRUE(guests_.quiet_since(5));
  EXPECT_FALSE(guests_.admits(100));
  EXPECT_TRUE(guests_.admits(200));
  guests_.quiet(1, 5);
  EXPECT_TRUE(guests_.admits(100));
}

// What it has under way may need the next connection to end.
TEST_F(GuestsTest, WhoKnowsWhyComesBackBeforeItIsQuiet) {
  guests_.came(1, 100);
  guests_.known(1, 4);
  guests_.fence_late(5);
  EXPECT_FALSE(guests_.admits(100)) << "it may begin anew where it was";
  guests_.known(1, 5);
  EXPECT_TRUE(guests_.admits(100));
  guests_.known(1, 3);  // an old word takes nothing back
  EXPECT_TRUE(guests_.admits(100));
  EXPECT_FALSE(guests_.quiet_since(6));
  guests_.quiet(1, kNeverAgain);
  EXPECT_FALSE(guests_.admits(100)) << "it has said that it will not begin again";
}

TEST_F(GuestsTest, WhoOnlyKnowsWhyIsNotQuietWhereTheFenceDoesNotHold) {
  fence_holds_ = false;
  guests_.came(1, 100);
  guests_.fence_late(5);
  guests_.known(1, 5);
  EXPECT_TRUE(guests_.admits(100));
  EXPECT_FALSE(guests_.quiet_since(5));
  guests_.quiet(1, 5);
  EXPECT_TRUE(guests_.quiet_since(5));
}

TEST_F(GuestsTest, AFenceThatDoesNotHoldIsNotEnough) {
  fence_holds_ = false;
  guests_.came(1, 100);
  guests_.fence_late(5);
  EXPECT_FALSE(guests_.quiet_since(5));
  guests_.quiet(1, 5);
  EXPECT_TRUE(guests_.quiet_since(5));
}

TEST_F(GuestsTest, WhoLeavesIsCutOff) {
  guests_.came(1, 100);
  guests_.left(1);
  guests_.left(1);
  EXPECT_EQ(fenced_, std::vector<uint64_t>{100});
  EXPECT_TRUE(guests_.quiet_since(5));
  EXPECT_FALSE(guests_.admits(100));
}

TEST_F(GuestsTest, WhoLeavesWithoutAWordAndMayStillWriteIsNeverQuiet) {
  fence_holds_ = false;
  guests_.came(1, 100);
  guests_.quiet(1, kNeverAgain);
  EXPECT_FALSE(guests_.admits(100)) << "it has said that it will not begin again";
  guests_.left(1);
  EXPECT_TRUE(guests_.quiet_since(5));
  guests_.came(2, 200);
  guests_.quiet(2, 5);
  guests_.left(2);
  EXPECT_FALSE(guests_.quiet_since(5));
}

}  // namespace
}  // namespace kvferry::plugin
