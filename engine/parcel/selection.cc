#include "engine/parcel/selection.h"

#include <fmt/format.h>

namespace kvferry {
namespace {

constexpr uint8_t kVersion = 1;

Error garbage(std::string message) {
  return {ErrorCode::protocol, "selection: " + std::move(message), {}, {}, {}};
}

Status check_order(const KvOrderOfBytes& order) {
  uint32_t seen = 0;
  for (const KvDimension dimension : order) {
    if (dimension > KvDimension::plane) return garbage("unknown dimension");
    if (dimension == KvDimension::token && (seen & 2U) == 0) return garbage("tokens come before their chunk");
    seen |= 1U << static_cast<uint32_t>(dimension);
  }
  if (seen != 31U) return garbage("a dimension comes twice");
  return {};
}

}  // namespace

std::string encode(const Selection& selection) {
  std::string bytes;
  ByteWriter out(bytes);
  out.put(kVersion);
  out.put(static_cast<uint16_t>(selection.parts.size()));
  for (const SelectionPart& part : selection.parts) {
    out.put(part.owner_group);
    out.put(part.reader_group);
    for (const uint32_t value : {part.first_head, part.head_count, part.first_token, part.end_token, part.chunk_tokens})
      out.put(value);
    for (const KvDimension dimension : part.order) out.put(static_cast<uint8_t>(dimension));
    out.put(static_cast<uint16_t>(part.layers.size()));
    for (const LayerRun& run : part.layers) {
      out.put(static_cast<uint16_t>(run.first));
      out.put(static_cast<uint16_t>(run.count));
      out.put(static_cast<uint16_t>(run.step));
    }
  }
  return bytes;
}

Result<Selection> decode_selection(ByteSpan bytes) {
  if (bytes.size() > kMaxSelectionBytes) return garbage("longer than any valid one");
  ByteReader in(bytes);
  if (in.get<uint8_t>() != kVersion) return garbage("unknown version");
  Selection selection;
  const size_t parts = in.get<uint16_t>();
  if (parts > kMaxSelectionParts) return garbage("too many parts");
  for (size_t i = 0; i < parts && in.ok(); ++i) {
    SelectionPart& part = selection.parts.emplace_back();
    part.owner_group = in.get<uint16_t>();
    part.reader_group = in.get<uint16_t>();
    for (uint32_t* value : {&part.first_head, &part.head_count, &part.first_token, &part.end_token, &part.chunk_tokens})
      *value = in.get<uint32_t>();
    for (KvDimension& dimension : part.order) dimension = static_cast<KvDimension>(in.get<uint8_t>());
    const size_t runs = in.get<uint16_t>();
    if (runs > kMaxLayers) return garbage("too many runs of layers");
    for (size_t run = 0; run < runs && in.ok(); ++run) {
      LayerRun& layers = part.layers.emplace_back();
      layers.first = in.get<uint16_t>();
      layers.count = in.get<uint16_t>();
      layers.step = in.get<uint16_t>();
    }
    if (!in.ok()) break;
    KVF_RETURN_IF_ERROR(check_order(part.order));
    if (auto layers = expand(part.layers); !layers.ok()) return std::move(layers).error();
    if (part.first_token >= part.end_token || part.head_count == 0 || part.chunk_tokens == 0)
      return garbage("a part selects nothing");
  }
  if (!in.ok()) return garbage("cut short");
  if (!in.at_end()) return garbage("bytes after the end");
  return selection;
}

std::vector<LayerRun> to_runs(const std::vector<uint32_t>& indices) {
  std::vector<LayerRun> runs;
  for (const uint32_t index : indices) {
    if (!runs.empty()) {
      LayerRun& run = runs.back();
      if (run.count == 1) run.step = index - run.first;
      if (index == run.first + run.count * run.step) {
        ++run.count;
        continue;
      }
    }
    runs.push_back({index, 1, 1});
  }
  for (LayerRun& run : runs) run.step = run.count == 1 ? 1 : run.step;
  return runs;
}

Result<std::vector<uint32_t>> expand(const std::vector<LayerRun>& runs) {
  std::vector<uint32_t> indices;
  for (const LayerRun& run : runs) {
    if (run.count == 0 || run.step == 0) return garbage("an empty run of layers");
    if (run.count > kMaxLayers - indices.size()) return garbage(fmt::format("more than {} layers", kMaxLayers));
    if (!indices.empty() && run.first <= indices.back()) return garbage("layers do not ascend");
    for (uint32_t i = 0; i < run.count; ++i) indices.push_back(run.first + i * run.step);
  }
  if (indices.empty()) return garbage("no layers");
  return indices;
}

}  // namespace kvferry
