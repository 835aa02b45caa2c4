#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "engine/parcel/layout.h"

// What owners and readers of the parcel chaos test share: a small cache, and bytes that tell whose they are.

namespace kvferry::test {

constexpr uint32_t kChaosLayers = 2;
constexpr size_t kChaosPage = 4096;  // of one block in one layer
constexpr uint32_t kChaosTokens = 16;
constexpr uint64_t kPoison = 0xDEADDEADDEADDEADULL;

inline KvLayout chaos_layout(uint64_t region, uint32_t blocks) {
  KvLayout layout;
  layout.layers_total = kChaosLayers;
  KvGroup group;
  group.block_tokens = kChaosTokens;
  group.block_count = blocks;
  group.heads_total = group.heads_local = 2;
  group.head_size_k = group.head_size_v = kChaosPage / kChaosTokens / 2 / 2 / 2;
  group.element_bits = 16;
  layout.groups = {group};
  for (uint32_t layer = 0; layer < kChaosLayers; ++layer)
    layout.layers.push_back(dense_layer(layer, 0, group, PageShape::head_major, KvOrder::in_block, region,
                                        uint64_t{layer} * blocks * kChaosPage));
  return layout;
}

inline uint64_t chaos_word(uint64_t serial, size_t position, uint32_t layer, size_t word) {
  uint64_t x = serial * 0x9E3779B97F4A7C15ULL + position * 0xC2B2AE3D27D4EB4FULL + layer * 0x165667B19E3779F9ULL + word;
  x ^= x >> 29;
  return x * 0xBF58476D1CE4E5B9ULL;
}

// A cache in ordinary memory; every word of a block is what `word(layer, index)` says.
class ChaosCache {
 public:
  explicit ChaosCache(uint32_t blocks) : blocks_(blocks), words_(size_t{kChaosLayers} * blocks * kChaosPage / 8) {
    for (uint32_t block = 0; block < blocks; ++block) free_.push_back(block);
  }
  void* base() { return words_.data(); }
  size_t bytes() const { return words_.size() * 8; }
  uint32_t blocks() const { return blocks_; }
  size_t free_blocks() const { return free_.size(); }

  // Fewer than `count` when there are not so many.
  std::vector<uint32_t> take(size_t count) {
    std::vector<uint32_t> taken;
    if (free_.size() < count) return taken;
    taken.assign(free_.end() - static_cast<ptrdiff_t>(count), free_.end());
    free_.resize(free_.size() - count);
    return taken;
  }
  // Poisoned on the spot: whoever still reads them reads poison.
  void give_back(const std::vector<uint32_t>& blocks) {
    for (const uint32_t block : blocks)
      for (uint32_t layer = 0; layer < kChaosLayers; ++layer) std::fill_n(page(layer, block), kChaosPage / 8, kPoison);
    free_.insert(free_.begin(), blocks.begin(), blocks.end());
  }
  void fill(const std::vector<uint32_t>& blocks, uint64_t serial) {
    for (size_t i = 0; i < blocks.size(); ++i)
      for (uint32_t layer = 0; layer < kChaosLayers; ++layer)
        for (size_t word = 0; word < kChaosPage / 8; ++word)
          page(layer, blocks[i])[word] = chaos_word(serial, i, layer, word);
  }
  bool holds(const std::vector<uint32_t>& blocks, uint64_t serial) {
    for (size_t i = 0; i < blocks.size(); ++i)
      for (uint32_t layer = 0; layer < kChaosLayers; ++layer)
        for (size_t word = 0; word < kChaosPage / 8; ++word)
          if (page(layer, blocks[i])[word] != chaos_word(serial, i, layer, word)) return false;
    return true;
  }

 private:
  uint64_t* page(uint32_t layer, uint32_t block) {
    return words_.data() + (size_t{layer} * blocks_ + block) * kChaosPage / 8;
  }
  const uint32_t blocks_;
  std::vector<uint64_t> words_;
  std::vector<uint32_t> free_;
};

}  // namespace kvferry::test
