#include "proxy/route.h"

#include <gtest/gtest.h>

#include <map>

namespace kvferry::proxy {
namespace {

std::vector<Candidate> candidates(size_t count) {
  std::vector<Candidate> all(count);
  for (size_t i = 0; i < count; ++i) all[i].key = stable_hash(std::to_string(i));
  return all;
}

TEST(Choose, NothingUsableGivesNothing) {
  auto all = candidates(2);
  for (auto& one : all) one.usable = false;
  for (const Policy policy : {Policy::round_robin, Policy::least_loaded, Policy::prefix, Policy::session}) {
    EXPECT_FALSE(choose(policy, all, {0, "s"}).has_value());
    EXPECT_FALSE(choose(policy, {}, {0, "s"}).has_value());
  }
}

TEST(Choose, EveryPolicyPassesUnusableOnesOver) {
  auto all = candidates(3);
  all[0].usable = all[2].usable = false;
  all[1].load = 1e6;
  for (const Policy policy : {Policy::round_robin, Policy::least_loaded, Policy::prefix, Policy::session}) {
    for (uint64_t i = 0; i < 10; ++i) EXPECT_EQ(choose(policy, all, {i, "s"}), 1U);
  }
}

TEST(Choose, RoundRobinTakesTurns) {
  const auto all = candidates(3);
  std::map<size_t, int> taken;
  for (uint64_t i = 0; i < 30; ++i) ++taken[*choose(Policy::round_robin, all, {i, {}})];
  EXPECT_EQ(taken, (std::map<size_t, int>{{0, 10}, {1, 10}, {2, 10}}));
}

TEST(Choose, LeastLoadedCountsWeights) {
  auto all = candidates(2);
  all[0].load = 10;
  all[1].load = 5;
  EXPECT_EQ(choose(Policy::least_loaded, all, {}), 1U);
  all[1].weight = 0.1;  // starts slowly: its 5 count like 50
  EXPECT_EQ(choose(Policy::least_loaded, all, {}), 0U);
}

TEST(Choose, SessionsStayAndOnlyThoseOfALostBackendMove) {
  auto all = candidates(4);
  std::map<std::string, size_t> before;
  for (int i = 0; i < 400; ++i) {
    const std::string session = "session-" + std::to_string(i);
    before[session] = *choose(Policy::session, all, {0, session});
    EXPECT_EQ(choose(Policy::session, all, {7, session}), before[session]);
  }
  all[2].usable = false;
  int moved = 0;
  for (const auto& [session, index] : before) {
    const size_t now = *choose(Policy::session, all, {0, session});
    EXPECT_TRUE(index == 2 || now == index) << session;
    moved += index == 2 ? 1 : 0;
  }
  EXPECT_GT(moved, 50);
  EXPECT_LT(moved, 150);
}

TEST(Choose, PrefixWinsUnlessItsBackendIsSwamped) {
  auto all = candidates(2);
  all[1].cached_share = 0.9;
  all[1].load = 1000;
  EXPECT_EQ(choose(Policy::prefix, all, {}), 1U);
  all[1].load = 100000;
  EXPECT_EQ(choose(Policy::prefix, all, {}), 0U);
}

TEST(Loads, CountWhatIsNotCached) {
  EXPECT_DOUBLE_EQ(uncached_tokens(4000, 0), 1000);
  EXPECT_DOUBLE_EQ(uncached_tokens(4000, 0.75), 250);
  EXPECT_GT(prefill_load(100, 1), prefill_load(100, 0));
  EXPECT_GT(decode_load(2, 0), decode_load(1, 0));
}

TEST(PrefixIndex, KnowsHowMuchEachHasSeen) {
  PrefixIndex index(1000);
  const auto all = candidates(2);
  const std::string common(1280, 'a');
  index.remember(common + std::string(1280, 'b'), all[0].key);
  index.remember(common, all[1].key);
  const auto shares = index.shares(common + std::string(1280, 'b'), all);
  EXPECT_DOUBLE_EQ(shares[0], 1.0);
  EXPECT_DOUBLE_EQ(shares[1], 0.5);
  EXPECT_DOUBLE_EQ(index.shares(std::string(1280, 'x') + common, all)[0], 0.0);
}

TEST(PrefixIndex, IsBoundedAndForgetsTheOldest) {
  PrefixIndex index(50);
  const auto all = candidates(1);
  const std::string first(1280, '1');
  index.remember(first, all[0].key);
  for (int i = 0; i < 100; ++i)
    index.remember(std::string(1280, static_cast<char>('A' + i % 50)) + std::to_string(i), all[0].key);
  EXPECT_LE(index.entries(), 50U);
  EXPECT_DOUBLE_EQ(index.shares(first, all)[0], 0.0);
}

TEST(PrefixIndex, ForgetsABackendThatIsGone) {
  PrefixIndex index(100);
  const auto all = candidates(1);
  const std::string prompt(1280, 'p');
  index.remember(prompt, all[0].key);
  index.forget(all[0].key);
  EXPECT_DOUBLE_EQ(index.shares(prompt, all)[0], 0.0);
}

}  // namespace
}  // namespace kvferry::proxy
