#include <algorithm>

#include "engine/parcel/layout.h"

namespace kvferry {
namespace {

constexpr uint16_t kVersion = 1;

Error garbage(std::string message) {
  return {ErrorCode::protocol, "layout: " + std::move(message), {}, {}, {}};
}

// Strides repeat from layer to layer: a plane is sent as "same strides as the plane of the same kind before it" or not.
void put_plane(ByteWriter& out, const KvPlane& plane, KvPlane& previous) {
  const bool same = plane.block_stride == previous.block_stride && plane.head_stride == previous.head_stride &&
                    plane.token_stride == previous.token_stride && plane.region == previous.region;
  out.put<uint8_t>(same ? 1 : 0);
  out.put(plane.base);
  if (!same) {
    out.put(plane.region);
    out.put(plane.block_stride);
    out.put(plane.head_stride);
    out.put(plane.token_stride);
  }
  previous = plane;
}

KvPlane get_plane(ByteReader& in, KvPlane& previous) {
  const bool same = in.get<uint8_t>() != 0;
  KvPlane plane = previous;
  plane.base = in.get<uint64_t>();
  if (!same) {
    plane.region = in.get<uint64_t>();
    plane.block_stride = in.get<uint64_t>();
    plane.head_stride = in.get<uint64_t>();
    plane.token_stride = in.get<uint64_t>();
  }
  return previous = plane;
}

void put_group(ByteWriter& out, const KvGroup& group) {
  for (const uint32_t value : {group.block_tokens, group.block_count, group.heads_total, group.heads_local,
                               group.head_size_k, group.head_size_v, group.element_bits, group.window_tokens})
    out.put(value);
  out.put(static_cast<uint8_t>(group.sharing));
}

KvGroup get_group(ByteReader& in) {
  KvGroup group;
  for (uint32_t* value : {&group.block_tokens, &group.block_count, &group.heads_total, &group.heads_local,
                          &group.head_size_k, &group.head_size_v, &group.element_bits, &group.window_tokens})
    *value = in.get<uint32_t>();
  group.sharing = static_cast<HeadSharing>(in.get<uint8_t>());
  return group;
}

// Names repeat but for a number: the length of what is shared with the name before, then the rest.
void put_name(ByteWriter& out, const std::string& name, const std::string& previous) {
  const auto differ = std::mismatch(name.begin(), name.end(), previous.begin(), previous.end());
  const auto shared = static_cast<size_t>(differ.first - name.begin());
  out.put(static_cast<uint8_t>(shared));
  out.put(static_cast<uint8_t>(name.size() - shared));
  out.put_bytes(std::string_view(name).substr(shared));
}

bool get_name(ByteReader& in, std::string& name) {
  const size_t shared = in.get<uint8_t>();
  const size_t rest = in.get<uint8_t>();
  if (shared > name.size() || shared + rest > kMaxLayerName) return false;
  const ByteSpan bytes = in.get_bytes(rest);
  name.resize(shared);
  name.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return in.ok();
}

}  // namespace

std::string encode(const KvLayout& layout) {
  std::string bytes;
  ByteWriter out(bytes);
  out.put(kVersion);
  const ParallelRank& rank = layout.rank;
  for (const uint32_t value :
       {rank.tp_size, rank.tp_rank, rank.pp_size, rank.pp_rank, rank.dp_size, rank.dp_rank, layout.layers_total})
    out.put(value);
  out.put(static_cast<uint16_t>(layout.groups.size()));
  for (const KvGroup& group : layout.groups) put_group(out, group);
  out.put(static_cast<uint16_t>(layout.layers.size()));
  KvPlane k, v;
  std::string name;
  for (const KvLayer& layer : layout.layers) {
    out.put(layer.index);
    out.put(layer.group);
    put_name(out, layer.name, name);
    put_plane(out, layer.k, k);
    put_plane(out, layer.v, v);
    name = layer.name;
  }
  return bytes;
}

Result<KvLayout> decode_layout(ByteSpan bytes) {
  if (bytes.size() > kMaxLayoutBytes) return garbage("longer than any valid one");
  ByteReader in(bytes);
  if (in.get<uint16_t>() != kVersion) return garbage("unknown version");
  KvLayout layout;
  ParallelRank& rank = layout.rank;
  for (uint32_t* value :
       {&rank.tp_size, &rank.tp_rank, &rank.pp_size, &rank.pp_rank, &rank.dp_size, &rank.dp_rank, &layout.layers_total})
    *value = in.get<uint32_t>();
  const size_t groups = in.get<uint16_t>();
  if (groups > kMaxGroups) return garbage("too many groups");
  for (size_t i = 0; i < groups && in.ok(); ++i) layout.groups.push_back(get_group(in));
  const size_t layers = in.get<uint16_t>();
  if (layers > kMaxLayers) return garbage("too many layers");
  KvPlane k, v;
  std::string name;
  for (size_t i = 0; i < layers && in.ok(); ++i) {
    KvLayer& layer = layout.layers.emplace_back();
    layer.index = in.get<uint32_t>();
    layer.group = in.get<uint16_t>();
    if (!get_name(in, name)) return garbage("a layer's name does not fit");
    layer.name = name;
    layer.k = get_plane(in, k);
    layer.v = get_plane(in, v);
  }
  if (!in.ok()) return garbage("cut short");
  if (!in.at_end()) return garbage("bytes after the end");
  KVF_RETURN_IF_ERROR(validate(layout));
  return layout;
}

}  // namespace kvferry
