#include "test/support/kv_world.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace kvferry::test {
namespace {

// The value of one byte of the model's cache: a different one for each.
uint64_t value_of(uint32_t layer, uint32_t head, uint32_t token, uint32_t plane, uint32_t byte) {
  return 1 + byte + 64ULL * (plane + 2ULL * (token + 4096ULL * (head + 4096ULL * layer)));
}

// Calls visit(layer, position in memory, value) for each byte of K and V of tokens [first, end) that has a block.
template <class Visit>
void for_each_byte(const KvLayout& layout, const std::vector<BlockList>& blocks, uint32_t first, uint32_t end,
                   Visit&& visit) {
  for (const KvLayer& layer : layout.layers) {
    const KvGroup& group = layout.groups[layer.group];
    const BlockList& list = blocks[layer.group];
    for (uint32_t token = first; token < end; ++token) {
      const uint32_t position = token / group.block_tokens;
      if (position < list.first || position - list.first >= list.ids.size()) continue;
      const uint32_t block = list.ids[position - list.first];
      if (block == kNoBlock) continue;
      for (uint32_t head = 0; head < group.heads_local; ++head) {
        for (uint32_t plane = 0; plane < 2; ++plane) {
          const KvPlane& where = plane == 0 ? layer.k : layer.v;
          const uint32_t row = plane == 0 ? group.k_row_bytes() : group.v_row_bytes();
          for (uint32_t byte = 0; byte < row; ++byte)
            visit(where.region, where.row(block, head, token % group.block_tokens) + byte,
                  value_of(layer.index, layout.first_head(layer.group) + head, token, plane, byte));
        }
      }
    }
  }
}

KvGroup group_for(const ModelGroup& model, uint32_t tp, uint32_t block_tokens, uint32_t tokens) {
  KvGroup group;
  group.block_tokens = block_tokens;
  group.block_count = (tokens + block_tokens - 1) / block_tokens + 3;
  group.heads_total = model.heads;
  group.heads_local = model.sharing == HeadSharing::replicated ? model.heads : std::max(1U, model.heads / tp);
  group.head_size_k = model.head_size_k;
  group.head_size_v = model.head_size_v;
  group.element_bits = 8;
  group.window_tokens = model.window;
  group.sharing = model.sharing;
  return group;
}

uint64_t page_bytes(const KvGroup& group) {
  return uint64_t{group.block_tokens} * group.heads_local * (group.k_row_bytes() + group.v_row_bytes());
}

// Puts the stage's layers into memory: one after another, or block by block with all layers in a row.
void place_layers(const InstanceShape& shape, const Model& model, uint32_t first, uint32_t count, Rank& rank) {
  const bool block_major = shape.block_major && shape.order != KvOrder::apart;
  uint64_t row = 0;
  uint32_t blocks = 0;
  for (uint32_t layer = first; layer < first + count; ++layer) {
    row += page_bytes(rank.layout.groups[model.group_of_layer[layer]]);
    blocks = std::max(blocks, rank.layout.groups[model.group_of_layer[layer]].block_count);
  }
  uint64_t offset = 24;
  for (uint32_t index = first; index < first + count; ++index) {
    const uint16_t number = model.group_of_layer[index];
    const KvGroup& group = rank.layout.groups[number];
    const uint64_t region = shape.own_regions && !block_major ? 10 + index : 7;
    KvLayer layer = dense_layer(index, number, group, shape.page, shape.order, region, offset, block_major ? row : 0);
    layer.name = fmt::format("model.layers.{}.attn", index);
    rank.layout.layers.push_back(layer);
    const uint64_t bytes = page_bytes(group) * (block_major ? 1 : group.block_count);
    offset += bytes + (block_major ? 0 : 8);
    std::vector<uint64_t>& cells = rank.memory[region];
    cells.resize(std::max<size_t>(cells.size(), 64 + offset + (block_major ? row * blocks : 0)), kUntouched);
  }
}

std::vector<BlockList> block_lists(const KvLayout& layout, uint32_t tokens, bool scattered, Random& random) {
  std::vector<BlockList> lists;
  for (const KvGroup& group : layout.groups) {
    BlockList& list = lists.emplace_back();
    std::vector<uint32_t> ids(group.block_count);
    std::iota(ids.begin(), ids.end(), 0U);
    for (size_t i = ids.size() - 1; scattered && i > 0; --i) std::swap(ids[i], ids[random.below(i + 1)]);
    ids.resize((tokens + group.block_tokens - 1) / group.block_tokens);
    list.ids = std::move(ids);
  }
  return lists;
}

}  // namespace

std::vector<CacheSide> Instance::sides() const {
  std::vector<CacheSide> sides;
  for (const Rank& rank : ranks) sides.push_back(rank.side());
  return sides;
}

void Instance::fill(uint32_t tokens) {
  for (Rank& rank : ranks) {
    for_each_byte(rank.layout, rank.blocks, 0, tokens, [&](uint64_t region, uint64_t position, uint64_t value) {
      rank.memory.at(region).at(position) = value;
    });
  }
}

Instance make_instance(const Model& model, const InstanceShape& shape, uint32_t tokens, Random& random) {
  const auto layers = static_cast<uint32_t>(model.group_of_layer.size());
  const std::vector<uint32_t> stages = shape.stages.empty() ? std::vector<uint32_t>{layers} : shape.stages;
  Instance instance;
  std::vector<BlockList> blocks;
  uint32_t first = 0;
  for (uint32_t pp = 0; pp < stages.size(); ++pp) {
    for (uint32_t tp = 0; tp < shape.tp; ++tp) {
      Rank& rank = instance.ranks.emplace_back();
      rank.layout.rank = {shape.tp, tp, static_cast<uint32_t>(stages.size()), pp, 1, 0};
      rank.layout.layers_total = layers;
      for (size_t group = 0; group < model.groups.size(); ++group)
        rank.layout.groups.push_back(group_for(
            model.groups[group], shape.tp, shape.block_tokens[std::min(group, shape.block_tokens.size() - 1)], tokens));
      place_layers(shape, model, first, stages[pp], rank);
      if (blocks.empty()) blocks = block_lists(rank.layout, tokens, shape.scattered, random);
      rank.blocks = blocks;
    }
    first += stages[pp];
  }
  return instance;
}

void move_bytes(const ReshardPlan& plan, const Instance& owners, Rank& reader) {
  for (const OwnerShare& share : plan.shares) {
    const uint32_t tp = owners.ranks.front().layout.rank.tp_size;
    const Rank& owner = owners.ranks.at(size_t{share.owner.pp} * tp + share.owner.tp);
    share.pairs.for_each([&](const CachePairs::Span& span) {
      for (uint64_t byte = 0; byte < span.length; ++byte)
        reader.memory.at(span.region[kReaderSide]).at(span.offset[kReaderSide] + byte) =
            owner.memory.at(span.region[kOwnerSide]).at(span.offset[kOwnerSide] + byte);
    });
  }
}

std::optional<std::string> first_wrong(const Rank& reader, uint32_t first, uint32_t end) {
  std::map<uint64_t, std::vector<uint64_t>> expected;
  for (const auto& [region, cells] : reader.memory) expected[region].resize(cells.size(), kUntouched);
  for_each_byte(reader.layout, reader.blocks, first, end,
                [&](uint64_t region, uint64_t position, uint64_t value) { expected.at(region).at(position) = value; });
  for (const auto& [region, cells] : reader.memory) {
    for (size_t i = 0; i < cells.size(); ++i) {
      if (cells[i] != expected.at(region)[i])
        return fmt::format("pp {} tp {}: region {} byte {} is {}, not {}", reader.layout.rank.pp_rank,
                           reader.layout.rank.tp_rank, region, i, cells[i], expected.at(region)[i]);
    }
  }
  return std::nullopt;
}

std::vector<uint64_t> stream_of(const CacheSpans& spans, const Rank& rank) {
  std::vector<uint64_t> stream;
  spans.for_each([&](const CacheSpans::Span& span) {
    for (uint64_t byte = 0; byte < span.length; ++byte)
      stream.push_back(rank.memory.at(span.region[0]).at(span.offset[0] + byte));
  });
  return stream;
}

}  // namespace kvferry::test
