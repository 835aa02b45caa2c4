#pragma once

#include <cstdint>
#include <vector>

namespace kvferry {

// Sizes of an instance's parallel groups and one rank's place in them. Data-parallel ranks hold different requests, so
// no plan ever crosses them.
struct ParallelRank {
  uint32_t tp_size = 1, tp_rank = 0;
  uint32_t pp_size = 1, pp_rank = 0;
  uint32_t dp_size = 1, dp_rank = 0;
  bool operator==(const ParallelRank&) const = default;
};

// A rank within one data-parallel rank of an instance.
struct RankId {
  uint32_t pp = 0, tp = 0;
  auto operator<=>(const RankId&) const = default;
};

// Tensor-parallel ranks [first, last] of a group of `size` whose share of the heads touches that of rank `rank` of a
// group of `of_size`. Both groups cut the same line [0, 1) into equal pieces; pieces that overlap are partners.
struct RankRange {
  uint32_t first = 0, last = 0;
};
RankRange touching_ranks(uint32_t rank, uint32_t of_size, uint32_t size);

// Who settles with whom, by the sizes alone: tensor-parallel partners, and, because the stages' layers are not known
// from sizes, every pipeline stage with every other. Every byte a reader needs is found at one of its partners, and
// every owner rank has a partner, so a parcel is always settled by somebody even when nothing of it is read.
// The two functions are each other's converse.
std::vector<RankId> settling_readers(const ParallelRank& owner, uint32_t reader_tp_size, uint32_t reader_pp_size);
std::vector<RankId> owners_to_settle(const ParallelRank& reader, uint32_t owner_tp_size, uint32_t owner_pp_size);

}  // namespace kvferry
