#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/parcel/layout.h"
#include "engine/parcel/selection.h"
#include "test/support/kv_world.h"

namespace kvferry {
namespace {

using ::testing::HasSubstr;

KvLayout some_layout(uint32_t layers = 64, bool own_regions = false) {
  SeededRandom random(1);
  test::Model model;
  model.groups = {{.heads = 8, .head_size_k = 16, .head_size_v = 16}, {.heads = 1, .window = 64}};
  model.group_of_layer.assign(layers, 0);
  for (size_t i = 1; i < layers; i += 2) model.group_of_layer[i] = 1;
  return test::make_instance(model, {.tp = 2, .block_tokens = {16}, .own_regions = own_regions}, 64, random)
      .ranks[1]
      .layout;
}

std::string refusal(const Status& status) {
  return status.ok() ? "" : status.error().to_string();
}

TEST(Layout, SurvivesTheWire) {
  for (const bool own_regions : {false, true}) {
    const KvLayout layout = some_layout(64, own_regions);
    const auto decoded = decode_layout(as_bytes(encode(layout)));
    ASSERT_TRUE(decoded.ok()) << decoded.error().to_string();
    EXPECT_EQ(*decoded, layout);
  }
}

TEST(Layout, TakesAboutFortyBytesALayer) {
  KvLayout layout = some_layout();
  for (KvLayer& layer : layout.layers) layer.group = 0, layer.k = layout.layers[0].k, layer.v = layout.layers[0].v;
  EXPECT_LT(encode(layout).size(), 64 * 42 + 200);
}

TEST(Layout, EveryTruncationIsRefused) {
  const std::string bytes = encode(some_layout(3));
  for (size_t length = 0; length < bytes.size(); ++length)
    EXPECT_FALSE(decode_layout(as_bytes(std::string_view(bytes).substr(0, length))).ok()) << length;
  EXPECT_FALSE(decode_layout(as_bytes(bytes + "x")).ok());
}

TEST(Layout, SpoiltBytesAreRefusedOrMakeAValidLayout) {
  const std::string bytes = encode(some_layout(3));
  SeededRandom random(5);
  size_t refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string spoilt = bytes;
    for (uint64_t flips = 1 + random.below(3); flips > 0; --flips)
      spoilt[random.below(spoilt.size())] = static_cast<char>(random.next());
    const auto decoded = decode_layout(as_bytes(spoilt));
    if (decoded.ok()) {
      EXPECT_TRUE(validate(*decoded).ok());
    } else {
      ++refused;
      EXPECT_FALSE(decoded.error().message.empty());
    }
  }
  EXPECT_GT(refused, 1000U);
}

TEST(Layout, RefusesNumbersThatMakeNoSense) {
  const auto spoil = [](auto&& change) {
    KvLayout layout = some_layout(4);
    change(layout);
    return refusal(validate(layout));
  };
  EXPECT_EQ(spoil([](KvLayout&) {}), "");
  EXPECT_THAT(spoil([](KvLayout& l) { l.rank.tp_rank = 2; }), HasSubstr("tp rank 2 of 2"));
  EXPECT_THAT(spoil([](KvLayout& l) { l.rank.pp_size = 0; }), HasSubstr("pp rank 0 of 0"));
  EXPECT_THAT(spoil([](KvLayout& l) { l.groups.clear(); }), HasSubstr("0 groups"));
  EXPECT_THAT(spoil([](KvLayout& l) { l.groups[0].block_tokens = 0; }), HasSubstr("blocks of 0 tokens"));
  EXPECT_THAT(spoil([](KvLayout& l) { l.groups[0].heads_total = 7; }), HasSubstr("do not divide among 2 ranks"));
  EXPECT_THAT(spoil([](KvLayout& l) { l.groups[0].heads_local = 8; }), HasSubstr("holds 8 heads where 4"));
  EXPECT_THAT(spoil([](KvLayout& l) { l.groups[0].element_bits = 3 * 8 << 20; }), HasSubstr("has rows of"));
  EXPECT_THAT(spoil([](KvLayout& l) { l.groups[0].head_size_k = 0; }), HasSubstr("has no K"));
  EXPECT_THAT(spoil([](KvLayout& l) { l.layers[2].group = 2; }), HasSubstr("layer 2 is in group 2 of 2"));
  EXPECT_THAT(spoil([](KvLayout& l) { l.layers[2].index = 1; }), HasSubstr("layer 1 comes after layer 1"));
  EXPECT_THAT(spoil([](KvLayout& l) { l.layers_total = 3; }), HasSubstr("4 layers of 3"));
  EXPECT_THAT(spoil([](KvLayout& l) { l.layers[0].k.token_stride = 1; }), HasSubstr("rows of layer 0"));
  EXPECT_THAT(spoil([](KvLayout& l) { l.layers[0].k.block_stride = ~0ULL; }), HasSubstr("beyond any region"));
  EXPECT_THAT(spoil([](KvLayout& l) { l.layers[0].v.base = ~0ULL; }), HasSubstr("beyond any region"));
}

TEST(Layout, HeadsOfARankFollowItsPlace) {
  KvLayout layout = some_layout(2);
  EXPECT_EQ(layout.first_head(0), 4U);  // 8 heads, rank 1 of 2
  EXPECT_EQ(layout.first_head(1), 0U);  // one head, copied
  layout.rank = {8, 5, 1, 0, 1, 0};
  layout.groups[0].heads_total = 4;
  EXPECT_EQ(layout.first_head(0), 2U);
}

TEST(Selection, RunsOfLayersAreShortAndExact) {
  for (const std::vector<uint32_t>& indices : std::vector<std::vector<uint32_t>>{
           {0}, {0, 1, 2, 3}, {1, 3, 5, 7}, {0, 1, 2, 5, 8, 11, 12}, {3, 9}, {1, 2, 4, 8, 16}}) {
    const auto again = expand(to_runs(indices));
    ASSERT_TRUE(again.ok());
    EXPECT_EQ(*again, indices);
  }
  EXPECT_EQ(to_runs({1, 3, 5, 7}).size(), 1U);
}

TEST(Selection, SpoiltBytesAreRefusedWithAReason) {
  Selection selection;
  selection.parts.push_back({.owner_group = 0,
                             .reader_group = 1,
                             .first_head = 2,
                             .head_count = 2,
                             .first_token = 5,
                             .end_token = 90,
                             .chunk_tokens = 16,
                             .layers = {{0, 32, 2}}});
  const std::string bytes = encode(selection);
  EXPECT_LT(bytes.size(), 64U);
  const auto decoded = decode_selection(as_bytes(bytes));
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(*decoded, selection);
  for (size_t length = 0; length < bytes.size(); ++length)
    EXPECT_FALSE(decode_selection(as_bytes(std::string_view(bytes).substr(0, length))).ok());
  const auto spoil = [&](auto&& change) {
    Selection bad = selection;
    change(bad.parts[0]);
    const auto result = decode_selection(as_bytes(encode(bad)));
    return result.ok() ? "" : result.error().to_string();
  };
  EXPECT_THAT(spoil([](SelectionPart& p) { p.order[0] = KvDimension::token; }), HasSubstr("before their chunk"));
  EXPECT_THAT(spoil([](SelectionPart& p) { p.order[0] = KvDimension::plane; }), HasSubstr("twice"));
  EXPECT_THAT(spoil([](SelectionPart& p) { p.order[0] = KvDimension{9}; }), HasSubstr("unknown dimension"));
  EXPECT_THAT(spoil([](SelectionPart& p) { p.layers[0].count = 2000; }), HasSubstr("more than 1024 layers"));
  EXPECT_THAT(spoil([](SelectionPart& p) { p.layers.clear(); }), HasSubstr("no layers"));
  EXPECT_THAT(spoil([](SelectionPart& p) { p.layers.push_back({5, 1, 1}); }), HasSubstr("do not ascend"));
  EXPECT_THAT(spoil([](SelectionPart& p) { p.end_token = 5; }), HasSubstr("selects nothing"));
}

}  // namespace
}  // namespace kvferry
