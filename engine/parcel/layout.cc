#include "engine/parcel/layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace kvferry {
namespace {

Error bad(std::string message) {
  return {ErrorCode::invalid_argument, "layout: " + std::move(message), {}, {}, {}};
}

Status check_rank(const ParallelRank& rank) {
  const auto fits = [](uint32_t size, uint32_t own) { return size > 0 && size <= kMaxRanks && own < size; };
  if (!fits(rank.tp_size, rank.tp_rank)) return bad(fmt::format("tp rank {} of {}", rank.tp_rank, rank.tp_size));
  if (!fits(rank.pp_size, rank.pp_rank)) return bad(fmt::format("pp rank {} of {}", rank.pp_rank, rank.pp_size));
  if (!fits(rank.dp_size, rank.dp_rank)) return bad(fmt::format("dp rank {} of {}", rank.dp_rank, rank.dp_size));
  return {};
}

Status check_group(const KvGroup& group, size_t number, uint32_t tp_size) {
  if (group.block_tokens == 0 || group.block_tokens > kMaxBlockTokens)
    return bad(fmt::format("group {} has blocks of {} tokens", number, group.block_tokens));
  if (group.block_count == 0 || group.block_count == kNoBlock)
    return bad(fmt::format("group {} has {} blocks", number, group.block_count));
  if (group.sharing != HeadSharing::split && group.sharing != HeadSharing::replicated)
    return bad(fmt::format("group {} shares its heads in an unknown way", number));
  if (group.heads_total == 0 || group.heads_total > kMaxHeads)
    return bad(fmt::format("group {} has {} heads", number, group.heads_total));
  const bool split = group.sharing == HeadSharing::split;
  if (split && group.heads_total % tp_size != 0 && tp_size % group.heads_total != 0)
    return bad(
        fmt::format("the {} heads of group {} do not divide among {} ranks", group.heads_total, number, tp_size));
  const uint32_t local = split ? std::max(1U, group.heads_total / tp_size) : group.heads_total;
  if (group.heads_local != local)
    return bad(fmt::format("group {} holds {} heads where {} are its share", number, group.heads_local, local));
  for (const uint64_t elements : {group.head_size_k, group.head_size_v}) {
    const uint64_t bits = elements * group.element_bits;
    if (bits % 8 != 0 || bits / 8 > kMaxRowBytes)
      return bad(fmt::format("group {} has rows of {} elements of {} bits", number, elements, group.element_bits));
  }
  if (group.k_row_bytes() == 0) return bad(fmt::format("group {} has no K", number));
  return {};
}

// Rows must not overlap: sorted by stride, each stride steps over all that the smaller ones reach.
Status check_plane(const KvPlane& plane, const KvGroup& group, uint32_t row, const KvLayer& layer) {
  struct Dimension {
    uint64_t stride, count;
  };
  std::array<Dimension, 3> dimensions{{{plane.block_stride, group.block_count},
                                       {plane.head_stride, group.heads_local},
                                       {plane.token_stride, group.block_tokens}}};
  std::sort(dimensions.begin(), dimensions.end(), [](auto left, auto right) { return left.stride < right.stride; });
  uint64_t extent = row;
  for (const Dimension& dimension : dimensions) {
    if (dimension.count == 1) continue;
    if (dimension.stride < extent) return bad(fmt::format("rows of layer {} '{}' overlap", layer.index, layer.name));
    if (dimension.stride > kMaxExtent / dimension.count)
      return bad(fmt::format("layer {} '{}' reaches beyond any region", layer.index, layer.name));
    extent += dimension.stride * (dimension.count - 1);
  }
  if (plane.base > kMaxExtent || extent > kMaxExtent - plane.base)
    return bad(fmt::format("layer {} '{}' reaches beyond any region", layer.index, layer.name));
  return {};
}

}  // namespace

uint32_t KvLayout::first_head(size_t group) const {
  if (groups[group].sharing == HeadSharing::replicated) return 0;
  return static_cast<uint32_t>(uint64_t{rank.tp_rank} * groups[group].heads_total / rank.tp_size);
}

size_t KvLayout::find_layer(uint32_t index) const {
  const auto found = std::lower_bound(layers.begin(), layers.end(), index,
                                      [](const KvLayer& layer, uint32_t wanted) { return layer.index < wanted; });
  if (found == layers.end() || found->index != index) return layers.size();
  return static_cast<size_t>(found - layers.begin());
}

Status validate(const KvLayout& layout) {
  KVF_RETURN_IF_ERROR(check_rank(layout.rank));
  if (layout.groups.empty() || layout.groups.size() > kMaxGroups)
    return bad(fmt::format("{} groups, 1 to {} are allowed", layout.groups.size(), kMaxGroups));
  if (layout.layers.size() > kMaxLayers || layout.layers_total > kMaxLayers)
    return bad(
        fmt::format("{} layers of {}, at most {} are allowed", layout.layers.size(), layout.layers_total, kMaxLayers));
  if (layout.layers.size() > layout.layers_total)
    return bad(fmt::format("{} layers of {}", layout.layers.size(), layout.layers_total));
  for (size_t i = 0; i < layout.groups.size(); ++i)
    KVF_RETURN_IF_ERROR(check_group(layout.groups[i], i, layout.rank.tp_size));
  for (size_t i = 0; i < layout.layers.size(); ++i) {
    const KvLayer& layer = layout.layers[i];
    if (layer.name.size() > kMaxLayerName) return bad(fmt::format("the name of layer {} is too long", layer.index));
    if (i > 0 && layer.index <= layout.layers[i - 1].index)
      return bad(fmt::format("layer {} comes after layer {}", layer.index, layout.layers[i - 1].index));
    if (layer.group >= layout.groups.size())
      return bad(fmt::format("layer {} is in group {} of {}", layer.index, layer.group, layout.groups.size()));
    const KvGroup& group = layout.groups[layer.group];
    KVF_RETURN_IF_ERROR(check_plane(layer.k, group, group.k_row_bytes(), layer));
    if (group.head_size_v > 0) KVF_RETURN_IF_ERROR(check_plane(layer.v, group, group.v_row_bytes(), layer));
  }
  return {};
}

KvLayer dense_layer(uint32_t index, uint16_t group, const KvGroup& shape, PageShape page, KvOrder order,
                    uint64_t region, uint64_t base, uint64_t block_stride) {
  const uint64_t k_row = shape.k_row_bytes();
  const uint64_t v_row = shape.v_row_bytes();
  const bool interleaved = order == KvOrder::interleaved;
  const auto plane = [&](uint64_t row) {
    KvPlane result{.region = region, .base = base};
    result.token_stride = page == PageShape::head_major ? row : row * shape.heads_local;
    result.head_stride = page == PageShape::head_major ? row * shape.block_tokens : row;
    result.block_stride = block_stride != 0 ? block_stride : row * shape.block_tokens * shape.heads_local;
    return result;
  };
  KvLayer layer{.index = index, .name = {}, .group = group, .k = plane(k_row), .v = plane(v_row)};
  const uint64_t rows = uint64_t{shape.block_tokens} * shape.heads_local;
  if (interleaved) {
    layer.k = layer.v = plane(k_row + v_row);
    layer.v.base += k_row;
  } else if (order == KvOrder::in_block) {
    if (block_stride == 0) layer.k.block_stride = layer.v.block_stride = rows * (k_row + v_row);
    layer.v.base += rows * k_row;
  } else {
    layer.v.base += layer.k.block_stride * shape.block_count;
  }
  return layer;
}

}  // namespace kvferry
