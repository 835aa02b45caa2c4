#include "test/simulator/cache.h"

#include <algorithm>

namespace kvferry::simulator {
namespace {

constexpr uint64_t kRowTags = uint64_t{1} << 41;  // apart from the tags of transfers

}  // namespace

Cache::Cache(World& world, SimEngine& engine, const CacheShape& shape, uint32_t tp_rank)
    : engine_(engine), shape_(shape), base_(engine.memory()) {
  KvGroup group;
  group.block_tokens = shape.block_tokens;
  group.block_count = shape.blocks;
  group.heads_total = shape.heads;
  group.heads_local = std::max(shape.heads / shape.tp_size, 1u);
  group.head_size_k = group.head_size_v = shape.head_size;
  group.element_bits = 16;
  layer_bytes_ = size_t{2} * group.k_row_bytes() * group.heads_local * group.block_tokens * group.block_count;
  const size_t bytes = layer_bytes_ * shape.layers;
  KVF_CHECK(bytes <= SimEngine::kMemory);
  fill_poison(base_, bytes);
  auto region = engine.registry().add(base_, bytes, shape.kind, kPrivate);
  KVF_CHECK(region.ok());
  KvLayout layout;
  layout.rank.tp_size = shape.tp_size;
  layout.rank.tp_rank = tp_rank;
  layout.layers_total = shape.layers;
  layout.groups = {group};
  for (uint32_t i = 0; i < shape.layers; ++i)
    layout.layers.push_back(dense_layer(i, 0, group, shape.page, shape.order, region->id, i * layer_bytes_));
  if (Status status = validate(layout); !status.ok()) world.fail("bad layout: {}", status.error().to_string());
  layout_ = std::make_shared<const KvLayout>(std::move(layout));
  for (uint32_t id = shape.blocks; id > 0; --id) free_.push_back(id - 1);
}

std::vector<uint32_t> Cache::take(size_t count) {
  if (count > free_.size()) return {};
  std::vector<uint32_t> taken(free_.end() - static_cast<ptrdiff_t>(count), free_.end());
  free_.resize(free_.size() - count);
  return taken;
}

// The block that was freed last is used first, as allocators do: a late read finds somebody else's bytes.
void Cache::give_back(const std::vector<uint32_t>& blocks) {
  free_.insert(free_.end(), blocks.begin(), blocks.end());
}

bool Cache::for_each_row(const std::vector<uint32_t>& blocks, uint32_t first, uint32_t tokens,
                         const EachRow& each) const {
  const KvGroup& group = layout_->groups.front();
  const uint32_t first_head = layout_->first_head(0);
  for (uint32_t token = first; token < tokens; ++token) {
    const uint32_t block = blocks[token / group.block_tokens];
    for (const KvLayer& layer : layout_->layers)
      for (uint32_t head = 0; head < group.heads_local; ++head)
        for (uint32_t kv = 0; kv < 2; ++kv) {
          const KvPlane& plane = kv == 0 ? layer.k : layer.v;
          std::byte* row = base_ + plane.row(block, head, token % group.block_tokens);
          const uint64_t place = (uint64_t{layer.index} * shape_.heads + first_head + head) * 2 + kv;
          if (!each(row, group.k_row_bytes(), place, token)) return false;
        }
  }
  return true;
}

void Cache::fill(const std::vector<uint32_t>& blocks, uint64_t tag, uint32_t tokens) {
  for_each_row(blocks, 0, tokens, [&](std::byte* row, size_t bytes, uint64_t place, uint32_t token) {
    fill_pattern(row, bytes, kRowTags + tag * 4096 + place, uint64_t{token} * bytes);
    return true;
  });
}

std::string Cache::differs(const std::vector<uint32_t>& blocks, uint64_t tag, uint32_t first, uint32_t tokens) const {
  std::string found;
  for_each_row(blocks, first, tokens, [&](const std::byte* row, size_t bytes, uint64_t place, uint32_t token) {
    if (is_pattern(row, bytes, kRowTags + tag * 4096 + place, uint64_t{token} * bytes)) return true;
    found = fmt::format("token {}, layer {}, head {}, {}", token, place / 2 / shape_.heads, place / 2 % shape_.heads,
                        place % 2 == 0 ? "K" : "V");
    return false;
  });
  return found;
}

void Cache::poison(const std::vector<uint32_t>& blocks) {
  const auto tokens = static_cast<uint32_t>(blocks.size()) * shape_.block_tokens;
  for_each_row(blocks, 0, tokens, [](std::byte* row, size_t bytes, uint64_t, uint32_t) {
    fill_poison(row, bytes);
    return true;
  });
}

void Cache::watch(MemoryBook& book, const std::vector<uint32_t>& blocks, TimePoint until, const std::string& what,
                  const Task& released) {
  const KvGroup& group = layout_->groups.front();
  const size_t page = size_t{group.k_row_bytes()} * group.heads_local * group.block_tokens;
  Task once = released;
  for (const uint32_t block : blocks)
    for (const KvLayer& layer : layout_->layers) {
      const auto plane = [&](const KvPlane& side, size_t bytes) {
        book.watch(engine_, base_ + side.base + block * side.block_stride, bytes, until, what,
                   std::exchange(once, nullptr));
      };
      if (shape_.order == KvOrder::apart) {
        plane(layer.k, page);
        plane(layer.v, page);
      } else {
        plane(layer.k, 2 * page);
      }
    }
}

}  // namespace kvferry::simulator
