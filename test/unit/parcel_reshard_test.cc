#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/parcel/reshard.h"
#include "test/support/kv_world.h"

namespace kvferry::test {
namespace {

using ::testing::HasSubstr;

// Every reader rank plans, reads, and has exactly what it wants; streams agree on both sides; the selection survives
// the wire. Returns the first thing that is wrong.
std::optional<std::string> transfer(Instance& owners, Instance& readers, uint32_t first, uint32_t end) {
  owners.fill(end);
  const std::vector<CacheSide> sides = owners.sides();
  for (Rank& reader : readers.ranks) {
    auto plan = plan_reshard(sides, {reader.side(), first, end});
    if (!plan.ok()) return plan.error().to_string();
    move_bytes(*plan, owners, reader);
    if (auto wrong = first_wrong(reader, first, end)) return wrong;
    std::vector<CacheSide> unseen = sides;
    for (CacheSide& side : unseen) side.blocks = {};
    const auto ahead = plan_selections(unseen, {reader.side(), first, end});
    if (!ahead.ok()) return ahead.error().to_string();
    if (ahead->shares.size() != plan->shares.size()) return "the plan before the tickets has other shares";
    for (size_t i = 0; i < plan->shares.size(); ++i)
      if (!(ahead->shares[i].selection == plan->shares[i].selection)) return "the selections before the tickets differ";
    uint64_t bytes = 0;
    for (const OwnerShare& share : plan->shares) {
      const Rank& owner = owners.ranks[share.owner.pp * owners.ranks[0].layout.rank.tp_size + share.owner.tp];
      const auto told = decode_selection(as_bytes(encode(share.selection)));
      if (!told.ok() || !(*told == share.selection)) return "the selection does not survive the wire";
      const auto sent = owner_spans(*told, owner.side());
      const auto taken = reader_spans(share.selection, reader.side());
      if (!sent.ok()) return sent.error().to_string();
      if (!taken.ok()) return taken.error().to_string();
      if (stream_of(*sent, owner) != stream_of(*taken, reader)) return "the streams differ";
      if (sent->bytes() != share.pairs.bytes()) return "the spans and the pairs differ in size";
      bytes += sent->bytes();
    }
    if (bytes != plan->bytes()) return "the sum of bytes is wrong";
  }
  return std::nullopt;
}

std::optional<std::string> transfer(const Model& model, const InstanceShape& owner, const InstanceShape& reader,
                                    uint32_t first, uint32_t end, uint64_t seed = 1) {
  SeededRandom random(seed);
  Instance owners = make_instance(model, owner, end, random);
  Instance readers = make_instance(model, reader, end, random);
  for (const Instance* instance : {&owners, &readers}) {
    for (const Rank& rank : instance->ranks) {
      if (const Status status = validate(rank.layout); !status.ok()) return status.error().to_string();
    }
  }
  return transfer(owners, readers, first, end);
}

const uint32_t kSizes[] = {1, 2, 4, 8};
const PageShape kPages[] = {PageShape::head_major, PageShape::token_major};
const KvOrder kOrders[] = {KvOrder::interleaved, KvOrder::in_block, KvOrder::apart};

TEST(Reshard, MovesEveryTensorParallelPairWithHeadsSplitCopiedAndReplicated) {
  for (const uint32_t heads : {8U, 4U, 2U, 1U}) {
    for (const HeadSharing sharing : {HeadSharing::split, HeadSharing::replicated}) {
      for (const uint32_t owner_tp : kSizes) {
        for (const uint32_t reader_tp : kSizes) {
          for (const PageShape page : kPages) {
            Model model;
            model.groups[0] = {.heads = heads, .sharing = sharing};
            const auto wrong = transfer(model, {.tp = owner_tp, .page = page}, {.tp = reader_tp}, 0, 11);
            EXPECT_EQ(wrong, std::nullopt) << owner_tp << " to " << reader_tp << ", heads " << heads;
          }
        }
      }
    }
  }
}

TEST(Reshard, MovesLatentCachesThatHaveNoV) {
  Model model;
  model.groups[0] = {.heads = 1, .head_size_k = 5, .head_size_v = 0, .sharing = HeadSharing::replicated};
  for (const uint32_t owner_tp : kSizes) {
    for (const uint32_t reader_tp : kSizes)
      EXPECT_EQ(transfer(model, {.tp = owner_tp}, {.tp = reader_tp, .block_tokens = {8}}, 3, 30), std::nullopt);
  }
}

TEST(Reshard, MovesBetweenAllPageShapesOrdersAndPlacements) {
  Model model;
  model.groups[0] = {.heads = 2, .head_size_k = 3, .head_size_v = 2};
  model.group_of_layer = {0, 0, 0};
  for (const PageShape from_page : kPages) {
    for (const PageShape to_page : kPages) {
      for (const KvOrder from : kOrders) {
        for (const KvOrder to : kOrders) {
          for (const int place : {0, 1, 2, 3}) {
            InstanceShape owner{.page = from_page, .order = from};
            InstanceShape reader{.tp = 2, .page = to_page, .order = to};
            owner.block_major = (place & 1) != 0;
            owner.own_regions = (place & 2) != 0;
            reader.block_major = (place & 2) != 0;
            reader.own_regions = (place & 1) != 0;
            EXPECT_EQ(transfer(model, owner, reader, 2, 13), std::nullopt);
          }
        }
      }
    }
  }
}

TEST(Reshard, MovesBetweenBlockSizesFromAnyTokenToAnyToken) {
  for (const uint32_t owner_block : {2U, 4U, 8U, 6U}) {
    for (const uint32_t reader_block : {2U, 4U, 8U, 3U}) {
      for (uint32_t first = 0; first < 10; ++first) {
        for (uint32_t end = first; end < 18; end += 3) {
          EXPECT_EQ(
              transfer({}, {.block_tokens = {owner_block}}, {.tp = 2, .block_tokens = {reader_block}}, first, end),
              std::nullopt)
              << owner_block << " to " << reader_block << " tokens " << first << " to " << end;
        }
      }
    }
  }
}

TEST(Reshard, MovesBetweenPipelinesWhoseStagesDiffer) {
  Model model;
  model.group_of_layer.assign(7, 0);
  const std::vector<uint32_t> cuts[] = {{7}, {4, 3}, {1, 6}, {2, 3, 2}, {1, 1, 1, 4}};
  for (const auto& from : cuts) {
    for (const auto& to : cuts) {
      EXPECT_EQ(transfer(model, {.tp = 2, .stages = from}, {.tp = 4, .stages = to}, 1, 9), std::nullopt);
    }
  }
}

TEST(Reshard, MovesSeededRandomLayouts) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SeededRandom random(seed);
    const auto pick = [&](auto&... options) -> uint32_t {
      const uint32_t all[] = {static_cast<uint32_t>(options)...};
      return all[random.below(sizeof...(options))];
    };
    const uint32_t one = 1, two = 2, four = 4, eight = 8;
    Model model;
    model.groups.clear();
    const uint64_t groups = 1 + random.below(3);
    for (uint64_t i = 0; i < groups; ++i) {
      model.groups.push_back({.heads = pick(one, two, four, eight),
                              .head_size_k = static_cast<uint32_t>(1 + random.below(4)),
                              .head_size_v = static_cast<uint32_t>(random.below(4)),
                              .sharing = random.below(4) == 0 ? HeadSharing::replicated : HeadSharing::split});
    }
    model.group_of_layer.resize(1 + random.below(6));
    for (uint16_t& group : model.group_of_layer) group = static_cast<uint16_t>(random.below(groups));
    const auto shape = [&] {
      InstanceShape result{.tp = pick(one, two, four, eight)};
      const auto layers = static_cast<uint32_t>(model.group_of_layer.size());
      const auto cut = static_cast<uint32_t>(random.below(layers + 1));
      result.stages = {cut, layers - cut};
      result.block_tokens = {pick(one, two, four, eight), pick(two, four), pick(four, eight)};
      result.page = kPages[random.below(2)];
      result.order = kOrders[random.below(3)];
      result.block_major = random.below(3) == 0;
      result.own_regions = random.below(3) == 0;
      result.scattered = random.below(3) != 0;
      return result;
    };
    const InstanceShape owner = shape();
    const InstanceShape reader = shape();
    const auto end = static_cast<uint32_t>(1 + random.below(30));
    const auto wrong = transfer(model, owner, reader, static_cast<uint32_t>(random.below(end)), end, seed);
    ASSERT_EQ(wrong, std::nullopt) << "seed " << seed;
  }
}

TEST(Reshard, SlidingWindowsMatchByPositionNotByTail) {
  Model model;
  model.groups = {{.heads = 2}, {.heads = 2, .window = 6}};
  model.group_of_layer = {0, 1, 0, 1};
  SeededRandom random(3);
  Instance owners = make_instance(model, {.tp = 2}, 24, random);
  Instance readers = make_instance(model, {}, 24, random);
  for (Rank& owner : owners.ranks) {  // tokens 0..15 left the window: places kept as no block
    for (size_t i = 0; i < 4; ++i) owner.blocks[1].ids[i] = kNoBlock;
  }
  for (Rank& reader : readers.ranks) {  // absent: the list begins later, and ends later
    reader.blocks[1].ids.erase(reader.blocks[1].ids.begin(), reader.blocks[1].ids.begin() + 4);
    reader.blocks[1].first = 4;
    reader.blocks[1].ids.push_back(8);
  }
  EXPECT_EQ(transfer(owners, readers, 0, 24), std::nullopt);
  owners.ranks[1].blocks[1].ids[4] = kNoBlock;  // token 18 is in the window of 24 - 6
  const auto plan = plan_reshard(owners.sides(), {readers.ranks[0].side(), 0, 24});
  ASSERT_FALSE(plan.ok());
  EXPECT_THAT(plan.error().to_string(), HasSubstr("group 1 of the owner has no block for token 18"));
}

struct Pair {
  SeededRandom random{1};
  Model model;
  Instance owners, readers;
  explicit Pair(const InstanceShape& owner = {}, const InstanceShape& reader = {}, uint32_t tokens = 8)
      : owners(make_instance(model, owner, tokens, random)), readers(make_instance(model, reader, tokens, random)) {}
  std::string refusal(uint32_t first = 0, uint32_t end = 8, size_t limit = kMaxSpans) {
    const auto plan = plan_reshard(owners.sides(), {readers.ranks.back().side(), first, end}, limit);
    return plan.ok() ? "" : plan.error().to_string();
  }
};

TEST(Reshard, NamesALayerThatIsMissingOnEitherSide) {
  Pair pair;
  pair.owners.ranks[0].layout.layers.pop_back();
  EXPECT_THAT(pair.refusal(), HasSubstr("layer 1 'model.layers.1.attn' is missing at the owner"));
  Pair other;
  other.readers.ranks[0].layout.layers.erase(other.readers.ranks[0].layout.layers.begin());
  EXPECT_THAT(other.refusal(), HasSubstr("layer 0 'model.layers.0.attn' is missing at the reader"));
  Pair renamed;
  renamed.owners.ranks[0].layout.layers[1].name = "draft";
  EXPECT_THAT(renamed.refusal(), HasSubstr("layer 1 is 'draft' at the owner"));
  Pair counted;
  counted.owners.ranks[0].layout.layers_total = 3;
  EXPECT_THAT(counted.refusal(), HasSubstr("3 layers, the reader's 2"));
}

TEST(Reshard, RefusesWhatDoesNotFitByName) {
  Pair heads;
  heads.owners.ranks[0].layout.groups[0].heads_total = 8;
  EXPECT_THAT(heads.refusal(), HasSubstr("has heads 8 at the owner and 4 at the reader"));
  Pair bits;
  bits.readers.ranks[0].layout.groups[0].element_bits = 16;
  EXPECT_THAT(bits.refusal(), HasSubstr("element bits 8 at the owner and 16"));
  Pair rank({.tp = 2});
  rank.owners.ranks.pop_back();
  EXPECT_THAT(rank.refusal(), HasSubstr("the layout of owner rank pp 0 tp 1 is missing"));
  Pair twice({.tp = 2});
  twice.owners.ranks[1] = twice.owners.ranks[0];
  EXPECT_THAT(twice.refusal(), HasSubstr("comes twice"));
  Pair tokens;
  EXPECT_THAT(tokens.refusal(0, 9), HasSubstr("has no block for token 8"));
  Pair beyond;
  beyond.readers.ranks[0].blocks[0].ids[1] = 5;
  EXPECT_THAT(beyond.refusal(), HasSubstr("block 5 of group 0 is beyond its 5 blocks"));
  Pair hole;
  hole.owners.ranks[0].blocks[0].ids[1] = kNoBlock;
  EXPECT_THAT(hole.refusal(), HasSubstr("group 0 has no block for token 4"));
  Pair many({}, {.page = PageShape::token_major});
  EXPECT_THAT(many.refusal(0, 8, 20), HasSubstr("more than 20 spans"));
}

TEST(Reshard, AnOwnerRefusesASelectionThatItCannotServe) {
  Pair pair({.tp = 2}, {.tp = 2});
  const auto plan = plan_reshard(pair.owners.sides(), {pair.readers.ranks[0].side(), 0, 8});
  ASSERT_TRUE(plan.ok());
  const Selection good = plan->shares[0].selection;
  const auto refusal = [&](auto&& spoil) {
    Selection bad = good;
    spoil(bad.parts[0]);
    const auto spans = owner_spans(bad, pair.owners.ranks[0].side());
    return spans.ok() ? "" : spans.error().to_string();
  };
  EXPECT_EQ(refusal([](SelectionPart&) {}), "");
  EXPECT_THAT(refusal([](SelectionPart& part) { part.owner_group = 1; }), HasSubstr("there is no group 1"));
  EXPECT_THAT(refusal([](SelectionPart& part) { part.first_head = 2; }), HasSubstr("are not all of this rank"));
  EXPECT_THAT(refusal([](SelectionPart& part) { part.head_count = ~0U; }), HasSubstr("are not all of this rank"));
  EXPECT_THAT(refusal([](SelectionPart& part) { part.layers[0].count = 3; }), HasSubstr("layer 2 is not in group"));
  EXPECT_THAT(refusal([](SelectionPart& part) { part.chunk_tokens = 3; }), HasSubstr("chunks of 3 tokens"));
  EXPECT_THAT(refusal([](SelectionPart& part) { part.end_token = ~0U; }), HasSubstr("no block for token 8"));
}

TEST(Reshard, ReadsALatentCacheFromOneRankAndSettlesWithAll) {
  SeededRandom random(1);
  Model model;
  model.groups[0] = {.heads = 1, .head_size_v = 0, .sharing = HeadSharing::replicated};
  const Instance owners = make_instance(model, {.tp = 4}, 8, random);
  const Instance readers = make_instance(model, {}, 8, random);
  const auto plan = plan_reshard(owners.sides(), {readers.ranks[0].side(), 0, 8});
  ASSERT_TRUE(plan.ok());
  ASSERT_EQ(plan->shares.size(), 4U);
  EXPECT_GT(plan->shares[0].pairs.bytes(), 0U);
  for (size_t tp = 1; tp < 4; ++tp) EXPECT_TRUE(plan->shares[tp].pairs.empty());
}

TEST(Reshard, SettlesWithoutReadingWhenEverythingIsCached) {
  Pair pair({.tp = 2}, {});
  const auto plan = plan_reshard(pair.owners.sides(), {pair.readers.ranks[0].side(), 8, 8});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->shares.size(), 2U);
  EXPECT_EQ(plan->bytes(), 0U);
}

TEST(Reshard, MergesConsecutiveBlocksIntoOneSpanPerLayer) {
  Pair pair({.scattered = false}, {.scattered = false}, 64);
  const auto plan = plan_reshard(pair.owners.sides(), {pair.readers.ranks[0].side(), 0, 64});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->shares[0].pairs.expand().size(), 2U);
  Pair rows({.block_major = true, .scattered = false}, {.block_major = true, .scattered = false}, 64);
  const auto whole = plan_reshard(rows.owners.sides(), {rows.readers.ranks[0].side(), 0, 64});
  ASSERT_TRUE(whole.ok());
  EXPECT_EQ(whole->shares[0].pairs.expand().size(), 1U);
}

TEST(Reshard, NeverMergesAcrossRegions) {
  Pair pair({.own_regions = true, .scattered = false}, {.own_regions = true, .scattered = false}, 64);
  for (Instance* instance : {&pair.owners, &pair.readers}) {  // offsets go on where the other region's end
    std::vector<KvLayer>& layers = instance->ranks[0].layout.layers;
    const uint64_t end = layers[0].k.base + 16 * layers[0].k.block_stride;
    layers[1].v.base = end + (layers[1].v.base - layers[1].k.base);
    layers[1].k.base = end;
  }
  const auto plan = plan_reshard(pair.owners.sides(), {pair.readers.ranks[0].side(), 0, 64});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->shares[0].pairs.expand().size(), 2U);
}

}  // namespace
}  // namespace kvferry::test
