#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "common/random.h"
#include "sim/block_allocator.h"

namespace kvferry::sim {
namespace {

constexpr size_t kSize = 4;

std::vector<Token> tokens_from(Token first, size_t count) {
  std::vector<Token> tokens;
  for (size_t i = 0; i < count; ++i) tokens.push_back(first + static_cast<Token>(i));
  return tokens;
}

// Fills fresh blocks with whole blocks of tokens and remembers them.
std::vector<BlockId> fill(BlockAllocator& allocator, std::span<const Token> tokens, ChainHash salt = 0) {
  auto blocks = allocator.allocate(tokens.size() / kSize);
  EXPECT_TRUE(blocks.has_value());
  ChainHash chain = salt;
  for (size_t i = 0; i < blocks->size(); ++i) {
    chain = allocator.remember((*blocks)[i], chain, tokens.subspan(i * kSize, kSize));
  }
  return *blocks;
}

TEST(SimBlockAllocator, GivesAllOrNothing) {
  BlockAllocator allocator(4, kSize, true);
  const auto three = allocator.allocate(3);
  ASSERT_TRUE(three.has_value());
  EXPECT_FALSE(allocator.allocate(2).has_value());
  EXPECT_EQ(allocator.counts().used, 3u);
  EXPECT_EQ(allocator.counts().free, 1u);
  allocator.release(*three);
  EXPECT_TRUE(allocator.allocate(4).has_value());
}

TEST(SimBlockAllocator, FindsTheLongestKnownPrefixAndOnlyBehindTheSameBeginning) {
  BlockAllocator allocator(16, kSize, true);
  const std::vector<Token> tokens = tokens_from(0, 12);
  const std::vector<BlockId> blocks = fill(allocator, tokens);
  std::vector<Token> longer = tokens;
  longer.insert(longer.end(), {90, 91, 92, 93, 94});
  EXPECT_EQ(allocator.match(0, longer), blocks);
  EXPECT_EQ(allocator.match(0, std::span(tokens).first(11)).size(), 2u);  // whole blocks only
  EXPECT_TRUE(allocator.match(0, std::span(tokens).subspan(4)).empty());  // the same tokens elsewhere
  EXPECT_TRUE(allocator.match(77, tokens).empty());                       // another salt
}

TEST(SimBlockAllocator, KeepsReleasedContentUntilTheBlocksAreNeededOldestFirstAndTailsBeforeHeads) {
  BlockAllocator allocator(5, kSize, true);
  const std::vector<Token> first = tokens_from(0, 8);
  const std::vector<Token> second = tokens_from(100, 8);
  const std::vector<BlockId> a = fill(allocator, first);
  const std::vector<BlockId> b = fill(allocator, second);
  allocator.release(a);
  allocator.release(b);
  EXPECT_EQ(allocator.counts().cached, 4u);
  EXPECT_EQ(allocator.counts().free, 1u);
  const auto two = allocator.allocate(2);  // the free one, and the tail of the older prompt
  EXPECT_EQ(allocator.match(0, first).size(), 1u);
  EXPECT_EQ(allocator.match(0, second).size(), 2u);
  EXPECT_EQ((*two)[1], a[1]);
}

TEST(SimBlockAllocator, ASharedBlockIsUsedUntilItsLastReferenceGoes) {
  BlockAllocator allocator(2, kSize, true);
  const std::vector<Token> tokens = tokens_from(0, 8);
  const std::vector<BlockId> own = fill(allocator, tokens);
  const std::vector<BlockId> shared = allocator.match(0, tokens);
  EXPECT_EQ(shared, own);
  allocator.release(own);
  EXPECT_EQ(allocator.counts().used, 2u);
  EXPECT_FALSE(allocator.allocate(1).has_value());
  allocator.release(shared);
  EXPECT_EQ(allocator.counts().cached, 2u);
}

TEST(SimBlockAllocator, EqualContentComputedTwiceIsRememberedOnce) {
  BlockAllocator allocator(4, kSize, true);
  const std::vector<Token> tokens = tokens_from(0, 8);
  const std::vector<BlockId> first = fill(allocator, tokens);
  const std::vector<BlockId> twin = fill(allocator, tokens);
  allocator.release(twin);
  EXPECT_EQ(allocator.counts().free, 2u);
  EXPECT_EQ(allocator.match(0, tokens), first);
}

TEST(SimBlockAllocator, WithoutPrefixCacheNothingIsRemembered) {
  BlockAllocator allocator(4, kSize, false);
  const std::vector<Token> tokens = tokens_from(0, 8);
  allocator.release(fill(allocator, tokens));
  EXPECT_EQ(allocator.counts().free, 4u);
  EXPECT_TRUE(allocator.match(0, tokens).empty());
}

// Random use against a model: what a prompt finds is always what was written there.
TEST(SimBlockAllocator, NeverHandsOutABlockWithOtherContentThanItSays) {
  SeededRandom random(3);
  BlockAllocator allocator(12, kSize, true);
  std::map<BlockId, std::vector<Token>> content;  // all tokens up to the end of this block
  std::vector<std::vector<BlockId>> live;
  for (size_t round = 0; round < 5000; ++round) {
    if (live.size() > 3 || (random.below(3) == 0 && !live.empty())) {
      const size_t index = random.below(live.size());
      allocator.release(live[index]);
      live.erase(live.begin() + static_cast<std::ptrdiff_t>(index));
      continue;
    }
    std::vector<Token> tokens;
    for (size_t i = 0; i < kSize * (1 + random.below(3)); ++i) tokens.push_back(static_cast<Token>(random.below(2)));
    std::vector<BlockId> blocks = allocator.match(0, tokens);
    for (size_t i = 0; i < blocks.size(); ++i) {
      const std::vector<Token> expected(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>((i + 1) * kSize));
      ASSERT_EQ(content[blocks[i]], expected);
    }
    const auto rest = allocator.allocate(tokens.size() / kSize - blocks.size());
    if (!rest) {
      allocator.release(blocks);
      continue;
    }
    const size_t matched = blocks.size();
    blocks.insert(blocks.end(), rest->begin(), rest->end());
    ChainHash chain = 0;
    for (size_t i = 0; i < blocks.size(); ++i) {
      const auto part = std::span<const Token>(tokens).subspan(i * kSize, kSize);
      if (i < matched) {
        chain = chain_hash(chain, part);
        continue;
      }
      for (const auto& other : live) ASSERT_EQ(std::ranges::count(other, blocks[i]), 0);
      chain = allocator.remember(blocks[i], chain, part);
      content[blocks[i]].assign(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>((i + 1) * kSize));
    }
    live.push_back(blocks);
    const BlockCounts counts = allocator.counts();
    ASSERT_EQ(counts.free + counts.cached + counts.used, counts.total);
  }
  for (const auto& blocks : live) allocator.release(blocks);
  EXPECT_EQ(allocator.counts().used, 0u);
  allocator.forget_cached();
  EXPECT_EQ(allocator.counts().free, 12u);
}

}  // namespace
}  // namespace kvferry::sim
