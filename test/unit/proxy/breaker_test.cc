#include "proxy/breaker.h"

#include <gtest/gtest.h>

namespace kvferry::proxy {
namespace {

constexpr TimePoint kStart{std::chrono::seconds(100)};

TEST(Breaker, OpensAfterEnoughSoftFailures) {
  Breaker breaker;
  for (int i = 1; i < Breaker::kThreshold; ++i) breaker.failed(kStart, false);
  EXPECT_TRUE(breaker.allows(kStart));
  breaker.failed(kStart, false);
  EXPECT_EQ(breaker.state(kStart), Breaker::State::open);
  EXPECT_FALSE(breaker.allows(kStart));
}

TEST(Breaker, SuccessForgetsFailures) {
  Breaker breaker;
  for (int i = 1; i < Breaker::kThreshold; ++i) breaker.failed(kStart, false);
  breaker.succeeded();
  breaker.failed(kStart, false);
  EXPECT_TRUE(breaker.allows(kStart));
}

TEST(Breaker, OneHardFailureOpensIt) {
  Breaker breaker;
  breaker.failed(kStart, true);
  EXPECT_FALSE(breaker.allows(kStart));
}

TEST(Breaker, HalfOpenLetsOneTrialThrough) {
  Breaker breaker;
  breaker.failed(kStart, true);
  const TimePoint later = kStart + Breaker::kFirstOpen;
  EXPECT_EQ(breaker.state(later), Breaker::State::half_open);
  EXPECT_TRUE(breaker.allows(later));
  breaker.starts(later);
  EXPECT_FALSE(breaker.allows(later));
  breaker.undecided();
  EXPECT_TRUE(breaker.allows(later));
  breaker.succeeded();
  EXPECT_EQ(breaker.state(later), Breaker::State::closed);
}

TEST(Breaker, AFailedTrialWaitsTwiceAsLong) {
  Breaker breaker;
  breaker.failed(kStart, true);
  const TimePoint trial = kStart + Breaker::kFirstOpen;
  breaker.starts(trial);
  breaker.failed(trial, true);
  EXPECT_EQ(breaker.state(trial + Breaker::kFirstOpen), Breaker::State::open);
  EXPECT_EQ(breaker.state(trial + 2 * Breaker::kFirstOpen), Breaker::State::half_open);
}

TEST(Breaker, LateFailuresWhileOpenDoNotProlongIt) {
  Breaker breaker;
  breaker.failed(kStart, true);
  for (int i = 0; i < 20; ++i) breaker.failed(kStart + Breaker::kFirstOpen / 2, true);
  EXPECT_EQ(breaker.state(kStart + Breaker::kFirstOpen), Breaker::State::half_open);
}

}  // namespace
}  // namespace kvferry::proxy
