#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/random.h"
#include "engine/parcel/reshard.h"

namespace kvferry::test {

// A toy model's KV cache on the ranks of two instances, in memory, and an oracle that knows byte by byte what must lie
// where. It uses KvPlane::row and nothing else of the code under test.

struct ModelGroup {
  uint32_t heads = 4;
  uint32_t head_size_k = 2;
  uint32_t head_size_v = 2;
  uint32_t window = 0;
  HeadSharing sharing = HeadSharing::split;
};

struct Model {
  std::vector<ModelGroup> groups{{}};
  std::vector<uint16_t> group_of_layer{0, 0};
};

struct InstanceShape {
  uint32_t tp = 1;
  std::vector<uint32_t> stages{};         // layers of each pipeline stage; empty: one stage with all
  std::vector<uint32_t> block_tokens{4};  // by group; the last one holds for the rest
  PageShape page = PageShape::head_major;
  KvOrder order = KvOrder::interleaved;
  bool block_major = false;  // all layers of a block in one row
  bool own_regions = false;  // a region for each layer
  bool scattered = true;     // block ids in random order, else consecutive
};

// One rank: its layout, its blocks, and its memory, a cell for each byte so that what lies there is beyond doubt.
struct Rank {
  KvLayout layout;
  std::vector<BlockList> blocks;
  std::map<uint64_t, std::vector<uint64_t>> memory;
  CacheSide side() const { return {&layout, blocks}; }
};

inline constexpr uint64_t kUntouched = 0;

struct Instance {
  std::vector<Rank> ranks;  // pp outer, tp inner
  std::vector<CacheSide> sides() const;
  // Writes the right value into every row of tokens [0, tokens) that has a block.
  void fill(uint32_t tokens);
};

// `tokens` of block ids in each group, the same on all ranks.
Instance make_instance(const Model& model, const InstanceShape& shape, uint32_t tokens, Random& random);

// Moves what `plan` says from the owners to the reader.
void move_bytes(const ReshardPlan& plan, const Instance& owners, Rank& reader);

// The first thing wrong with the reader's memory, if its tokens [first, end) were to be filled and nothing else
std::optional<std::string> first_wrong(const Rank& reader, uint32_t first, uint32_t end);

// Fills `spans` cells one after another: what a stream of them would carry.
std::vector<uint64_t> stream_of(const CacheSpans& spans, const Rank& rank);

}  // namespace kvferry::test
