#include "engine/parcel/reshard.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>

namespace kvferry {
namespace {

Error refuse(ErrorCode code, std::string message) {
  return {code, "re-sharding: " + std::move(message), {}, {}, {}};
}

// A tensor-parallel rank of the owner, and which heads the reader takes from it.
struct HeadSource {
  uint32_t tp, first_head, head_count;
};

// The sources of the reader's heads of `group`: for each head the first partner that holds it. Neighbouring readers of
// copied heads have different first partners, so copies share the load.
std::vector<HeadSource> head_sources(const KvLayout& reader, size_t group, uint32_t owner_tp_size) {
  const KvGroup& shape = reader.groups[group];
  const RankRange partners = touching_ranks(reader.rank.tp_rank, reader.rank.tp_size, owner_tp_size);
  if (shape.sharing == HeadSharing::replicated) return {{partners.first, 0, shape.heads_total}};
  const uint32_t held = std::max(1U, shape.heads_total / owner_tp_size);
  uint32_t head = reader.first_head(group);
  const uint32_t end = head + shape.heads_local;
  std::vector<HeadSource> sources;
  for (uint32_t tp = partners.first; tp <= partners.last; ++tp) {
    const auto first = static_cast<uint32_t>(uint64_t{tp} * shape.heads_total / owner_tp_size);
    if (head < first || head >= std::min(end, first + held)) continue;
    const uint32_t until = std::min(end, first + held);
    sources.push_back({tp, head, until - head});
    head = until;
  }
  KVF_CHECK(head == end);
  return sources;
}

Status check_same_shape(const KvLayer& layer, const KvGroup& owner, const KvGroup& reader) {
  const auto differs = [&](std::string_view what, auto left, auto right) {
    return refuse(ErrorCode::conflict, fmt::format("layer {} '{}' has {} {} at the owner and {} at the reader",
                                                   layer.index, layer.name, what, left, right));
  };
  if (owner.sharing != reader.sharing)
    return differs("head sharing", static_cast<int>(owner.sharing), static_cast<int>(reader.sharing));
  if (owner.heads_total != reader.heads_total) return differs("heads", owner.heads_total, reader.heads_total);
  if (owner.head_size_k != reader.head_size_k) return differs("K size", owner.head_size_k, reader.head_size_k);
  if (owner.head_size_v != reader.head_size_v) return differs("V size", owner.head_size_v, reader.head_size_v);
  if (owner.element_bits != reader.element_bits)
    return differs("element bits", owner.element_bits, reader.element_bits);
  return {};
}

// The order in which the owner's rows lie, by descending strides; a tie keeps layer, chunk, head, token, plane.
KvOrderOfBytes order_of(const KvLayer& first, const KvLayer& second) {
  const auto distance = [](const KvPlane& left, const KvPlane& right) {
    if (left.region != right.region) return std::numeric_limits<uint64_t>::max();
    return left.base > right.base ? left.base - right.base : right.base - left.base;
  };
  std::array<uint64_t, 5> strides{};
  strides[0] = &first == &second ? std::numeric_limits<uint64_t>::max() : distance(first.k, second.k);
  strides[1] = first.k.block_stride;
  strides[2] = first.k.head_stride;
  strides[3] = std::min(first.k.token_stride, first.k.block_stride);  // a chunk comes before its tokens
  strides[4] = distance(first.k, first.v);
  KvOrderOfBytes order = SelectionPart{}.order;
  std::stable_sort(order.begin(), order.end(), [&](KvDimension left, KvDimension right) {
    return strides[static_cast<size_t>(left)] > strides[static_cast<size_t>(right)];
  });
  return order;
}

uint32_t first_held_token(const BlockList& list, uint32_t block_tokens) {
  uint32_t position = list.first;
  for (const uint32_t id : list.ids) {
    if (id != kNoBlock) break;
    ++position;
  }
  return static_cast<uint32_t>(
      std::min<uint64_t>(uint64_t{position} * block_tokens, std::numeric_limits<uint32_t>::max()));
}

class Planner {
 public:
  Planner(std::span<const CacheSide> owners, const ReaderRequest& request, bool with_pairs, size_t max_spans)
      : owners_(owners),
        request_(request),
        reader_(*request.cache.layout),
        with_pairs_(with_pairs),
        max_spans_(max_spans) {}

  Result<ReshardPlan> plan() {
    KVF_RETURN_IF_ERROR(check_owners());
    KVF_RETURN_IF_ERROR(check_layers_of_owner());
    KVF_RETURN_IF_ERROR(match_layers());
    ReshardPlan plan;
    const ParallelRank& owner = owners_[0].layout->rank;
    for (const RankId id : owners_to_settle(reader_.rank, owner.tp_size, owner.pp_size)) {
      OwnerShare& share = plan.shares.emplace_back();
      share.owner = id;
      if (request_.first_token < request_.end_token) KVF_RETURN_IF_ERROR(fill(share));
    }
    return plan;
  }

 private:
  // What is taken from one owner rank, by (owner's group, reader's group).
  struct Part {
    HeadSource heads{};
    std::vector<uint32_t> layers;
  };
  using Parts = std::map<std::pair<uint16_t, uint16_t>, Part>;

  Status check_owners() {
    if (owners_.empty()) return refuse(ErrorCode::invalid_argument, "no owner rank was given");
    if (request_.cache.blocks.size() != reader_.groups.size())
      return refuse(ErrorCode::invalid_argument, "the reader does not give blocks for each of its groups");
    const ParallelRank& first = owners_[0].layout->rank;
    for (const CacheSide& owner : owners_) {
      const ParallelRank& rank = owner.layout->rank;
      if (rank.tp_size != first.tp_size || rank.pp_size != first.pp_size || rank.dp_size != first.dp_size ||
          rank.dp_rank != first.dp_rank)
        return refuse(ErrorCode::conflict, "the owner ranks are not of one group");
      if (owner.layout->layers_total != reader_.layers_total) layer_counts_differ_ = true;
      if (with_pairs_ && owner.blocks.size() != owner.layout->groups.size())
        return refuse(ErrorCode::invalid_argument, "an owner rank does not give blocks for each of its groups");
      if (!by_rank_.emplace(RankId{rank.pp_rank, rank.tp_rank}, &owner).second)
        return refuse(ErrorCode::conflict,
                      fmt::format("owner rank pp {} tp {} comes twice", rank.pp_rank, rank.tp_rank));
    }
    return {};
  }

  // A layer of the owner that belongs to this reader's stage but is not there: between the stage's first and last
  // layer, before the first stage's, after the last stage's.
  Status check_layers_of_owner() const {
    const bool first_stage = reader_.rank.pp_rank == 0;
    const bool last_stage = reader_.rank.pp_rank + 1 == reader_.rank.pp_size;
    for (const CacheSide& owner : owners_) {
      for (const KvLayer& layer : owner.layout->layers) {
        const bool after_begin =
            first_stage || (!reader_.layers.empty() && layer.index >= reader_.layers.front().index);
        const bool before_end = last_stage || (!reader_.layers.empty() && layer.index <= reader_.layers.back().index);
        if (after_begin && before_end && reader_.find_layer(layer.index) == reader_.layers.size())
          return refuse(ErrorCode::conflict,
                        fmt::format("layer {} '{}' is missing at the reader", layer.index, layer.name));
      }
    }
    return {};
  }

  Status match_layers() {
    std::vector<std::vector<HeadSource>> sources;
    for (size_t group = 0; group < reader_.groups.size(); ++group)
      sources.push_back(head_sources(reader_, group, owners_[0].layout->rank.tp_size));
    for (const KvLayer& layer : reader_.layers) {
      KVF_ASSIGN_OR_RETURN(const uint32_t stage, stage_of(layer));
      for (const HeadSource& source : sources[layer.group]) {
        const auto owner = by_rank_.find({stage, source.tp});
        if (owner == by_rank_.end())
          return refuse(ErrorCode::not_found,
                        fmt::format("the layout of owner rank pp {} tp {} is missing", stage, source.tp));
        KVF_RETURN_IF_ERROR(take(layer, source, *owner->second->layout, parts_[owner->first]));
      }
    }
    if (layer_counts_differ_)
      return refuse(ErrorCode::conflict, fmt::format("the owner's model has {} layers, the reader's {}",
                                                     owners_[0].layout->layers_total, reader_.layers_total));
    return {};
  }

  Result<uint32_t> stage_of(const KvLayer& layer) const {
    for (const auto& [id, owner] : by_rank_) {
      if (owner->layout->find_layer(layer.index) < owner->layout->layers.size()) return id.pp;
    }
    return refuse(ErrorCode::conflict, fmt::format("layer {} '{}' is missing at the owner", layer.index, layer.name));
  }

  static Status take(const KvLayer& layer, const HeadSource& source, const KvLayout& owner, Parts& parts,
                     const KvGroup& shape) {
    const size_t found = owner.find_layer(layer.index);
    if (found == owner.layers.size())
      return refuse(ErrorCode::conflict, fmt::format("layer {} '{}' is missing at owner rank pp {} tp {}", layer.index,
                                                     layer.name, owner.rank.pp_rank, owner.rank.tp_rank));
    const KvLayer& theirs = owner.layers[found];
    if (!layer.name.empty() && !theirs.name.empty() && layer.name != theirs.name)
      return refuse(ErrorCode::conflict, fmt::format("layer {} is '{}' at the owner and '{}' at the reader",
                                                     layer.index, theirs.name, layer.name));
    KVF_RETURN_IF_ERROR(check_same_shape(layer, owner.groups[theirs.group], shape));
    Part& part = parts[{theirs.group, layer.group}];
    part.heads = source;
    part.layers.push_back(layer.index);
    return {};
  }
  Status take(const KvLayer& layer, const HeadSource& source, const KvLayout& owner, Parts& parts) const {
    return take(layer, source, owner, parts, reader_.groups[layer.group]);
  }

  Status fill(OwnerShare& share) {
    const auto found = parts_.find(share.owner);
    if (found == parts_.end()) return {};
    const CacheSide& owner = *by_rank_.at(share.owner);
    for (const auto& [groups, part] : found->second) {
      KVF_ASSIGN_OR_RETURN(SelectionPart selected, select(owner, groups.first, groups.second, part));
      if (selected.first_token < selected.end_token) share.selection.parts.push_back(std::move(selected));
    }
    if (!with_pairs_) return {};
    KVF_ASSIGN_OR_RETURN(share.pairs, span_pairs(share.selection, owner, request_.cache, max_spans_));
    max_spans_ -= share.pairs.max_spans();
    return {};
  }

  Result<SelectionPart> select(const CacheSide& owner, uint16_t owner_group, uint16_t reader_group,
                               const Part& part) const {
    const KvLayout& layout = *owner.layout;
    const KvGroup& theirs = layout.groups[owner_group];
    const KvGroup& ours = reader_.groups[reader_group];
    SelectionPart selected;
    selected.owner_group = owner_group;
    selected.reader_group = reader_group;
    selected.first_head = part.heads.first_head;
    selected.head_count = part.heads.head_count;
    selected.chunk_tokens = std::gcd(theirs.block_tokens, ours.block_tokens);
    selected.end_token = request_.end_token;
    const uint32_t at_owner = with_pairs_ ? first_held_token(owner.blocks[owner_group], theirs.block_tokens) : 0;
    const uint32_t at_reader = first_held_token(request_.cache.blocks[reader_group], ours.block_tokens);
    // The next token sees `window_tokens` back, itself included, and the last one may be computed again.
    const uint32_t window = ours.window_tokens;
    const uint32_t seen = window == 0 || window >= selected.end_token ? 0 : selected.end_token - window;
    const uint32_t needed = std::max(request_.first_token, seen);
    for (const auto& [name, held] : {std::pair{"owner", at_owner}, std::pair{"reader", at_reader}}) {
      if (held > needed)
        return refuse(ErrorCode::not_found, fmt::format("group {} of the {} has no block for token {}",
                                                        held == at_owner ? owner_group : reader_group, name, needed));
    }
    selected.first_token = std::max({request_.first_token, at_owner, at_reader});
    selected.layers = to_runs(part.layers);
    const KvLayer& first = layout.layers[layout.find_layer(part.layers.front())];
    const KvLayer& second = layout.layers[layout.find_layer(part.layers[part.layers.size() > 1 ? 1 : 0])];
    selected.order = order_of(first, second);
    return selected;
  }

  std::span<const CacheSide> owners_;
  const ReaderRequest& request_;
  const KvLayout& reader_;
  const bool with_pairs_;
  size_t max_spans_;  // left
  bool layer_counts_differ_ = false;
  std::map<RankId, const CacheSide*> by_rank_;
  std::map<RankId, Parts> parts_;
};

}  // namespace

uint64_t ReshardPlan::bytes() const {
  uint64_t sum = 0;
  for (const OwnerShare& share : shares) sum += share.pairs.bytes();
  return sum;
}

Result<ReshardPlan> plan_reshard(std::span<const CacheSide> owners, const ReaderRequest& reader, size_t max_spans) {
  return Planner(owners, reader, true, max_spans).plan();
}

Result<ReshardPlan> plan_selections(std::span<const CacheSide> owners, const ReaderRequest& reader) {
  return Planner(owners, reader, false, 0).plan();
}

}  // namespace kvferry
