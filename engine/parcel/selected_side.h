#pragma once

#include <array>
#include <vector>

#include "engine/parcel/span_table.h"

namespace kvferry {

enum class Role : uint8_t { owner, reader };

// One part of a selection, found in one side's memory.
struct SelectedSide {
  struct Place {
    uint64_t block;
    uint64_t token;  // within the block, of the first token of the chunk that is selected
  };
  std::vector<std::array<KvPlane, 2>> layers;  // K and V; base moved to the first selected head
  std::vector<Place> chunks;

  const KvPlane& plane(size_t layer, size_t which) const { return layers[layer][which]; }
};

// The shape of a part, the same on all sides.
struct SelectedShape {
  size_t layers = 0;
  size_t heads = 0;
  size_t planes = 0;                    // 2, or 1 where there is no V
  std::array<uint32_t, 2> row_bytes{};  // of K and V
  std::vector<uint32_t> chunk_tokens;   // selected of each chunk; less than full only at the ends
};

Result<SelectedShape> shape_of(const SelectionPart& part, const CacheSide& side, Role role);
Result<SelectedSide> select(const SelectionPart& part, const CacheSide& side, Role role, const SelectedShape& shape);

}  // namespace kvferry
