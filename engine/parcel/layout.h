#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "common/bytes.h"
#include "common/result.h"
#include "engine/parcel/ranks.h"

namespace kvferry {

// How one rank's KV cache lies in its registered regions. docs/kv-layout.md explains it with a picture.

// I6: what a layout from the wire may ask for at most.
inline constexpr size_t kMaxLayers = 1024;
inline constexpr size_t kMaxGroups = 64;
inline constexpr size_t kMaxLayerName = 255;
inline constexpr uint32_t kMaxRanks = 4096;  // in any of tp, pp, dp
inline constexpr uint32_t kMaxHeads = 4096;  // of one layer, over all ranks
inline constexpr uint32_t kMaxBlockTokens = 1 << 16;
inline constexpr uint32_t kMaxRowBytes = 1 << 20;   // one token's K or V of one head
inline constexpr uint64_t kMaxExtent = 1ULL << 56;  // any offset within a region
// 1024 layers * (2 planes * 40 + name 257 + 8 bytes) and the head; a longer one is refused unread.
inline constexpr size_t kMaxLayoutBytes = 1 << 19;

enum class HeadSharing : uint8_t {
  split = 0,       // tensor parallel ranks share the heads out; with more ranks than heads, neighbours hold copies
  replicated = 1,  // every rank holds all of it (MLA: one "head", V empty)
};

// Layers that share block ids. The numbers that must agree between owner and reader are heads_total, sharing and the
// sizes; block_tokens, block_count and window_tokens may differ.
struct KvGroup {
  uint32_t block_tokens = 0;   // tokens in a block
  uint32_t block_count = 0;    // block ids are below it
  uint32_t heads_total = 0;    // KV heads of the model
  uint32_t heads_local = 0;    // of this rank: heads_total / tp, at least 1; all where replicated
  uint32_t head_size_k = 0;    // elements
  uint32_t head_size_v = 0;    // elements; 0: no V (MLA)
  uint32_t element_bits = 0;   // of the cache's dtype
  uint32_t window_tokens = 0;  // sliding window; 0: full attention. Older blocks may be absent
  HeadSharing sharing = HeadSharing::split;

  uint32_t k_row_bytes() const { return static_cast<uint32_t>(uint64_t{head_size_k} * element_bits / 8); }
  uint32_t v_row_bytes() const { return static_cast<uint32_t>(uint64_t{head_size_v} * element_bits / 8); }
  bool operator==(const KvGroup&) const = default;
};

// K or V of one layer: the row of (block, local head, token) lies at
// base + block * block_stride + head * head_stride + token * token_stride. Strides are in bytes.
struct KvPlane {
  uint64_t region = 0;
  uint64_t base = 0;
  uint64_t block_stride = 0;
  uint64_t head_stride = 0;
  uint64_t token_stride = 0;
  uint64_t row(uint64_t block, uint64_t head, uint64_t token) const {
    return base + block * block_stride + head * head_stride + token * token_stride;
  }
  bool operator==(const KvPlane&) const = default;
};

struct KvLayer {
  uint32_t index = 0;  // in the whole model, over all pipeline stages; unique
  std::string name;    // compared when both sides have one
  uint16_t group = 0;
  KvPlane k;
  KvPlane v;  // ignored where the group has no V
  bool operator==(const KvLayer&) const = default;
};

struct KvLayout {
  ParallelRank rank;
  uint32_t layers_total = 0;  // of the whole model, over all pipeline stages
  std::vector<KvGroup> groups;
  std::vector<KvLayer> layers;  // of this rank, ascending by index

  // The first head that this rank holds of group `group`, in the model's numbering.
  uint32_t first_head(size_t group) const;
  // Position in `layers`, or layers.size().
  size_t find_layer(uint32_t index) const;
  bool operator==(const KvLayout&) const = default;
};

// Whether the numbers make sense together: sizes within the limits, heads that divide among the ranks, rows that do
// not overlap, no offset beyond kMaxExtent. Everything else here REQUIRES a layout that passed.
Status validate(const KvLayout& layout);

// A layout as it travels in tickets: little-endian, about 40 bytes a layer. decode validates.
std::string encode(const KvLayout& layout);
Result<KvLayout> decode_layout(ByteSpan bytes);

// How a page orders its rows.
enum class PageShape : uint8_t { head_major, token_major };
enum class KvOrder : uint8_t {
  interleaved,  // K and V of a token and head next to each other
  in_block,     // all K of a block, then all its V
  apart,        // a tensor of all K, then one of all V
};

// The planes of a layer whose blocks lie one after another from `base` in `region`, densely.
// `block_stride` 0 means dense; larger where other layers' pages lie between (block-major caches).
KvLayer dense_layer(uint32_t index, uint16_t group, const KvGroup& shape, PageShape page, KvOrder order,
                    uint64_t region, uint64_t base, uint64_t block_stride = 0);

// A block id that stands for no block: a place in the list that is kept because positions count.
inline constexpr uint32_t kNoBlock = std::numeric_limits<uint32_t>::max();

// The blocks of one group of one request: ids[i] holds the tokens [(first + i) * block_tokens, ...). Leading ones may
// be absent (first > 0) or kNoBlock, as a sliding window leaves them; positions count, never distances from the end.
struct BlockList {
  uint32_t first = 0;
  std::vector<uint32_t> ids;
};

}  // namespace kvferry
