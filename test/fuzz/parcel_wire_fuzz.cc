// Layouts and selections from the wire, and the spans that a stranger's selection makes of them: what is decoded can be
// written again and says the same, and no span leaves the blocks that the side holds. The first byte says what follows:
// 0 a layout, 1 a selection, 2 a selection over a layout {u16 bytes of the layout, layout, selection}.
#include "engine/parcel/reshard.h"

namespace {

using namespace kvferry;

constexpr size_t kMaxSpansHere = 1 << 12;

void check_layout(ByteSpan bytes) {
  const auto layout = decode_layout(bytes);
  if (!layout) return;
  KVF_CHECK(validate(*layout).ok());
  const auto again = decode_layout(as_bytes(encode(*layout)));
  KVF_CHECK(again.ok() && *again == *layout);
}

void check_selection(ByteSpan bytes) {
  const auto selection = decode_selection(bytes);
  if (!selection) return;
  const auto again = decode_selection(as_bytes(encode(*selection)));
  KVF_CHECK(again.ok() && *again == *selection);
}

// The first byte behind the memory of one layer's K or V, in blocks below `blocks`.
uint64_t end_of(const KvPlane& plane, uint64_t blocks, const KvGroup& group, uint64_t row_bytes) {
  return plane.row(blocks - 1, group.heads_local - 1, group.block_tokens - 1) + row_bytes;
}

bool inside(const CacheSpans::Span& span, const KvLayout& layout, const std::vector<BlockList>& blocks) {
  for (const KvLayer& layer : layout.layers) {
    const KvGroup& group = layout.groups[layer.group];
    if (blocks[layer.group].ids.empty()) continue;
    const auto holds = [&](const KvPlane& plane, uint64_t row_bytes) {
      return plane.region == span.region[0] && span.offset[0] >= plane.base &&
             span.offset[0] < end_of(plane, group.block_count, group, row_bytes);
    };
    if (holds(layer.k, group.k_row_bytes()) || (group.head_size_v > 0 && holds(layer.v, group.v_row_bytes())))
      return true;
  }
  return false;
}

// A few blocks of each group, so that selections near the start find theirs and others do not.
std::vector<BlockList> some_blocks(const KvLayout& layout) {
  std::vector<BlockList> blocks(layout.groups.size());
  for (size_t i = 0; i < blocks.size(); ++i) {
    blocks[i].first = i % 2 == 0 ? 0 : 1;
    for (uint32_t id = 0; id < std::min(layout.groups[i].block_count, 8u); ++id)
      blocks[i].ids.push_back(id == 5 ? kNoBlock : id);
  }
  return blocks;
}

void check_spans(ByteSpan bytes) {
  if (bytes.size() < 2) return;
  const size_t layout_bytes = std::to_integer<size_t>(bytes[0]) | std::to_integer<size_t>(bytes[1]) << 8;
  bytes = bytes.subspan(2);
  if (layout_bytes > bytes.size()) return;
  const auto layout = decode_layout(bytes.first(layout_bytes));
  const auto selection = decode_selection(bytes.subspan(layout_bytes));
  if (!layout || !selection) return;
  const std::vector<BlockList> blocks = some_blocks(*layout);
  const CacheSide side{&*layout, blocks};
  const auto owner = owner_spans(*selection, side, kMaxSpansHere);
  const auto reader = reader_spans(*selection, side, kMaxSpansHere);
  const auto pairs = span_pairs(*selection, side, side, kMaxSpansHere);
  if (owner.ok()) {
    uint64_t bytes_seen = 0;
    owner->for_each([&](const CacheSpans::Span& span) {
      KVF_CHECK(span.length > 0 && inside(span, *layout, blocks));
      bytes_seen += span.length;
    });
    KVF_CHECK(bytes_seen == owner->bytes() && owner->expand().size() <= owner->max_spans());
  }
  if (owner.ok() && reader.ok()) KVF_CHECK(owner->bytes() == reader->bytes());
  if (pairs.ok()) KVF_CHECK(owner.ok() && reader.ok() && pairs->bytes() == owner->bytes());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const ByteSpan bytes(reinterpret_cast<const std::byte*>(data) + 1, size - 1);
  switch (data[0]) {
    case 0:
      check_layout(bytes);
      break;
    case 1:
      check_selection(bytes);
      break;
    default:
      check_spans(bytes);
  }
  return 0;
}
