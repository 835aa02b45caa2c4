#include "engine/parcel/ranks.h"

#include <cstddef>

namespace kvferry {
namespace {

std::vector<RankId> partners(const ParallelRank& own, uint32_t tp_size, uint32_t pp_size) {
  const RankRange range = touching_ranks(own.tp_rank, own.tp_size, tp_size);
  std::vector<RankId> ranks;
  ranks.reserve(static_cast<size_t>(pp_size) * (range.last - range.first + 1));
  for (uint32_t pp = 0; pp < pp_size; ++pp) {
    for (uint32_t tp = range.first; tp <= range.last; ++tp) ranks.push_back({pp, tp});
  }
  return ranks;
}

}  // namespace

RankRange touching_ranks(uint32_t rank, uint32_t of_size, uint32_t size) {
  const uint64_t begin = static_cast<uint64_t>(rank) * size;
  const uint64_t end = begin + size;  // [begin, end) / (of_size * size) of the line
  return {static_cast<uint32_t>(begin / of_size), static_cast<uint32_t>((end - 1) / of_size)};
}

std::vector<RankId> settling_readers(const ParallelRank& owner, uint32_t reader_tp_size, uint32_t reader_pp_size) {
  return partners(owner, reader_tp_size, reader_pp_size);
}

std::vector<RankId> owners_to_settle(const ParallelRank& reader, uint32_t owner_tp_size, uint32_t owner_pp_size) {
  return partners(reader, owner_tp_size, owner_pp_size);
}

}  // namespace kvferry
