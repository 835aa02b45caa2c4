#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/parcel/layout.h"

namespace kvferry {

// What one claim takes from one owner rank, in words that both sides understand without knowing the other's memory:
// layers, heads and tokens of the model. Small enough for a claim (tens of bytes).

enum class KvDimension : uint8_t { layer = 0, chunk = 1, head = 2, token = 3, plane = 4 };

// The canonical order of the bytes, outermost dimension first. It is a part of the selection: the planner takes the
// order in which the owner's memory lies, so that consecutive rows stay consecutive. A chunk comes before its tokens.
using KvOrderOfBytes = std::array<KvDimension, 5>;

struct LayerRun {
  uint32_t first = 0, count = 0, step = 1;  // indices first, first + step, ...
  bool operator==(const LayerRun&) const = default;
};

struct SelectionPart {
  uint16_t owner_group = 0;
  uint16_t reader_group = 0;
  uint32_t first_head = 0, head_count = 0;  // in the model's numbering
  uint32_t first_token = 0, end_token = 0;  // positions in the request, [first, end)
  uint32_t chunk_tokens = 0;                // divides both block sizes; chunks are cut at its multiples
  KvOrderOfBytes order{KvDimension::layer, KvDimension::chunk, KvDimension::head, KvDimension::token,
                       KvDimension::plane};
  std::vector<LayerRun> layers;  // ascending
  bool operator==(const SelectionPart&) const = default;
};

// I6
inline constexpr size_t kMaxSelectionParts = kMaxGroups * 4;
inline constexpr size_t kMaxSelectionBytes = 1 << 16;

struct Selection {
  std::vector<SelectionPart> parts;  // empty: nothing to read, the claim only settles
  bool operator==(const Selection&) const = default;
};

std::string encode(const Selection& selection);
Result<Selection> decode_selection(ByteSpan bytes);

// The runs of an ascending list of indices, and back. expand refuses more than kMaxLayers.
std::vector<LayerRun> to_runs(const std::vector<uint32_t>& indices);
Result<std::vector<uint32_t>> expand(const std::vector<LayerRun>& runs);

}  // namespace kvferry
