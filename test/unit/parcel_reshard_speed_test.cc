#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>

#include "common/random.h"
#include "engine/parcel/reshard.h"
#include "test/support/sanitized.h"

namespace kvferry {
namespace {

// 10,000 blocks of 16 tokens in 64 layers, 8 heads of 128 elements of 16 bits: the figure is the best of ten, or of
// more while it is over the limit, so that other load on the machine does not count. Sanitizers are given room.
constexpr double kLimitMs = test::kSanitized ? 1000 : 20;
constexpr uint32_t kBlocks = 10'000;
constexpr uint32_t kTokens = kBlocks * 16;

struct Setting {
  uint32_t tp = 1;
  PageShape page = PageShape::head_major;
  bool block_major = false;
  bool scattered = true;
  uint32_t block_tokens = 16;
};

KvLayout layout_of(const Setting& setting, uint32_t tp_rank) {
  KvLayout layout;
  layout.rank = {setting.tp, tp_rank, 1, 0, 1, 0};
  layout.layers_total = 64;
  KvGroup group;
  group.block_tokens = setting.block_tokens;
  group.block_count = 2 * kTokens / setting.block_tokens;
  group.heads_total = 8;
  group.heads_local = 8 / setting.tp;
  group.head_size_k = group.head_size_v = 128;
  group.element_bits = 16;
  layout.groups.push_back(group);
  const uint64_t page = uint64_t{setting.block_tokens} * group.heads_local * 512;
  for (uint32_t layer = 0; layer < 64; ++layer) {
    const uint64_t base = setting.block_major ? layer * page : layer * page * group.block_count;
    layout.layers.push_back(
        dense_layer(layer, 0, group, setting.page, KvOrder::interleaved, 1, base, setting.block_major ? 64 * page : 0));
  }
  return layout;
}

BlockList blocks_of(const Setting& setting, uint64_t seed) {
  SeededRandom random(seed);
  std::vector<uint32_t> ids(2 * kTokens / setting.block_tokens);
  std::iota(ids.begin(), ids.end(), 0U);
  for (size_t i = ids.size() - 1; setting.scattered && i > 0; --i) std::swap(ids[i], ids[random.below(i + 1)]);
  ids.resize(kTokens / setting.block_tokens);
  return {0, std::move(ids)};
}

struct Figures {
  double plan_ms = 1e9;
  double plan_and_expand_ms = 1e9;
  size_t spans = 0;
};

Figures measure(const char* name, const Setting& owner, const Setting& reader, bool expand = true) {
  std::vector<KvLayout> layouts;
  const std::vector<BlockList> owner_blocks{blocks_of(owner, 1)};
  const std::vector<BlockList> reader_blocks{blocks_of(reader, 2)};
  for (uint32_t tp = 0; tp < owner.tp; ++tp) layouts.push_back(layout_of(owner, tp));
  std::vector<CacheSide> sides;
  for (const KvLayout& layout : layouts) sides.push_back({&layout, owner_blocks});
  const KvLayout own = layout_of(reader, 0);
  Figures best;
  for (int i = 0; i < (test::kSanitized ? 1 : 10) || (i < 500 && best.plan_and_expand_ms >= kLimitMs); ++i) {
    const auto begin = std::chrono::steady_clock::now();
    const auto plan = plan_reshard(sides, {{&own, reader_blocks}, 0, kTokens}, size_t{1} << 30);
    const auto planned = std::chrono::steady_clock::now();
    EXPECT_TRUE(plan.ok()) << plan.error().to_string();
    if (!plan.ok()) return best;
    best.spans = 0;
    for (const OwnerShare& share : plan->shares)
      best.spans += expand ? share.pairs.expand().size() : share.pairs.max_spans();
    const auto end = std::chrono::steady_clock::now();
    best.plan_ms = std::min(best.plan_ms, std::chrono::duration<double, std::milli>(planned - begin).count());
    best.plan_and_expand_ms =
        std::min(best.plan_and_expand_ms, std::chrono::duration<double, std::milli>(end - begin).count());
  }
  std::printf("%-44s plan %7.3f ms, with every span written out %7.3f ms, %zu spans\n", name, best.plan_ms,
              best.plan_and_expand_ms, best.spans);
  return best;
}

TEST(ReshardSpeed, PlansTenThousandBlocksOfSixtyFourLayersInTwentyMilliseconds) {
  const Setting scattered;
  const Figures equal = measure("equal tp, scattered blocks", scattered, scattered);
  EXPECT_EQ(equal.spans, 640'000U);
  EXPECT_LT(equal.plan_and_expand_ms, kLimitMs);
  const Setting pages{.page = PageShape::token_major};
  EXPECT_LT(measure("equal tp, token-major pages, scattered", pages, pages).plan_and_expand_ms, kLimitMs);
  const Figures two_to_four = measure("tp 2 to 4, head-major pages, scattered", {.tp = 2}, {.tp = 4});
  EXPECT_EQ(two_to_four.spans, 640'000U);
  EXPECT_LT(two_to_four.plan_and_expand_ms, kLimitMs);
  EXPECT_LT(measure("tp 4 to 2, head-major pages, scattered", {.tp = 4}, {.tp = 2}).plan_ms, kLimitMs);
}

TEST(ReshardSpeed, ConsecutiveBlocksBecomeOneSpanPerLayerOrFewer) {
  const Setting rows{.scattered = false};
  const Figures merged = measure("equal tp, consecutive blocks", rows, rows);
  EXPECT_EQ(merged.spans, 64U);
  EXPECT_LT(merged.plan_and_expand_ms, kLimitMs);
  const Setting block_rows{.block_major = true};
  const Figures by_block = measure("equal tp, block-major cache, scattered", block_rows, block_rows);
  EXPECT_EQ(by_block.spans, kBlocks);
  EXPECT_LT(by_block.plan_and_expand_ms, kLimitMs);
}

TEST(ReshardSpeed, AnUnequalSplitOfTokenMajorPagesIsPlannedWithoutWritingItsSpansOut) {
  const Figures rows = measure("tp 2 to 1, token-major pages, scattered (upper bound)",
                               {.tp = 2, .page = PageShape::token_major}, {.page = PageShape::token_major}, false);
  EXPECT_EQ(rows.spans, 2U * 16 * kBlocks * 64);
  measure("blocks of 16 to 64, head-major pages (upper bound)", {}, {.block_tokens = 64}, false);
}

}  // namespace
}  // namespace kvferry
