#include "engine/parcel/selected_side.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvferry {
namespace {

std::string_view name(Role role) {
  return role == Role::owner ? "owner" : "reader";
}

Error refuse(ErrorCode code, Role role, const std::string& message) {
  return {code, fmt::format("selection at the {}: {}", name(role), message), {}, {}, {}};
}

size_t group_of(const SelectionPart& part, Role role) {
  return role == Role::owner ? part.owner_group : part.reader_group;
}

Result<uint32_t> block_of(const BlockList& list, const KvGroup& group, size_t number, uint32_t token, Role role) {
  const uint32_t position = token / group.block_tokens;
  if (position < list.first || position - list.first >= list.ids.size() || list.ids[position - list.first] == kNoBlock)
    return refuse(ErrorCode::not_found, role, fmt::format("group {} has no block for token {}", number, token));
  const uint32_t id = list.ids[position - list.first];
  if (id >= group.block_count)
    return refuse(ErrorCode::invalid_argument, role,
                  fmt::format("block {} of group {} is beyond its {} blocks", id, number, group.block_count));
  return id;
}

}  // namespace

Result<SelectedShape> shape_of(const SelectionPart& part, const CacheSide& side, Role role) {
  const size_t number = group_of(part, role);
  if (number >= side.layout->groups.size() || number >= side.blocks.size())
    return refuse(ErrorCode::not_found, role, fmt::format("there is no group {}", number));
  const KvGroup& group = side.layout->groups[number];
  if (part.chunk_tokens == 0 || group.block_tokens % part.chunk_tokens != 0)
    return refuse(ErrorCode::invalid_argument, role,
                  fmt::format("chunks of {} tokens in blocks of {}", part.chunk_tokens, group.block_tokens));
  // Before anything is built: the tokens must have blocks.
  const uint64_t held = (uint64_t{side.blocks[number].first} + side.blocks[number].ids.size()) * group.block_tokens;
  if (part.end_token > held)
    return refuse(ErrorCode::not_found, role, fmt::format("group {} has no block for token {}", number, held));
  if ((part.end_token - part.first_token) / part.chunk_tokens >= kMaxSpans)
    return refuse(ErrorCode::resource_exhausted, role, fmt::format("more than {} chunks", kMaxSpans));
  SelectedShape shape;
  shape.heads = part.head_count;
  shape.planes = group.head_size_v > 0 ? 2 : 1;
  shape.row_bytes = {group.k_row_bytes(), group.v_row_bytes()};
  for (const LayerRun& run : part.layers) shape.layers += run.count;
  for (uint32_t token = part.first_token; token < part.end_token;) {
    const uint32_t left_in_chunk = part.chunk_tokens - token % part.chunk_tokens;
    const uint32_t count = std::min(left_in_chunk, part.end_token - token);
    shape.chunk_tokens.push_back(count);
    token += count;
  }
  return shape;
}

Result<SelectedSide> select(const SelectionPart& part, const CacheSide& side, Role role, const SelectedShape& shape) {
  const size_t number = group_of(part, role);
  const KvLayout& layout = *side.layout;
  const KvGroup& group = layout.groups[number];
  const uint32_t first_head = layout.first_head(number);
  if (part.first_head < first_head || part.head_count > group.heads_local ||
      part.first_head - first_head > group.heads_local - part.head_count)
    return refuse(
        ErrorCode::invalid_argument, role,
        fmt::format("heads {}+{} of group {} are not all of this rank", part.first_head, part.head_count, number));
  KVF_ASSIGN_OR_RETURN(const std::vector<uint32_t> indices, expand(part.layers));
  SelectedSide selected;
  selected.layers.reserve(indices.size());
  for (const uint32_t index : indices) {
    const size_t at = layout.find_layer(index);
    if (at == layout.layers.size() || layout.layers[at].group != number)
      return refuse(ErrorCode::not_found, role, fmt::format("layer {} is not in group {}", index, number));
    std::array<KvPlane, 2>& planes = selected.layers.emplace_back();
    planes = {layout.layers[at].k, layout.layers[at].v};
    for (KvPlane& plane : planes) plane.base += (part.first_head - first_head) * plane.head_stride;
  }
  selected.chunks.reserve(shape.chunk_tokens.size());
  uint32_t token = part.first_token;
  for (const uint32_t count : shape.chunk_tokens) {
    KVF_ASSIGN_OR_RETURN(const uint32_t block, block_of(side.blocks[number], group, number, token, role));
    selected.chunks.push_back({block, token % group.block_tokens});
    token += count;
  }
  return selected;
}

}  // namespace kvferry
