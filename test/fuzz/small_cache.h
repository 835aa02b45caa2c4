#pragma once

#include "engine/parcel/layout.h"

namespace kvferry::test {

// A cache of two layers in one region, small enough that a random offset means something.
inline constexpr size_t kCacheLayerBytes = 4096;

inline KvLayout small_cache(uint64_t region) {
  KvGroup group;
  group.block_tokens = 4;
  group.block_count = 8;
  group.heads_total = group.heads_local = 2;
  group.head_size_k = group.head_size_v = 8;
  group.element_bits = 16;
  KvLayout layout;
  layout.layers_total = 2;
  layout.groups = {group};
  for (uint32_t i = 0; i < layout.layers_total; ++i)
    layout.layers.push_back(
        dense_layer(i, 0, group, PageShape::head_major, KvOrder::in_block, region, i * kCacheLayerBytes));
  return layout;
}

}  // namespace kvferry::test
