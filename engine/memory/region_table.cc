#include "engine/memory/region_table.h"

#include <algorithm>
#include <numeric>

namespace kvferry {

std::shared_ptr<const RegionTable> RegionTable::next(const RegionTable& before, std::span<const RegionInfo> added,
                                                     std::span<const RegionId> removed) {
  std::vector<RegionId> gone(removed.begin(), removed.end());
  std::sort(gone.begin(), gone.end());
  auto table = std::make_shared<RegionTable>();
  for (const RegionInfo& region : before.by_id_)
    if (!std::binary_search(gone.begin(), gone.end(), region.id)) table->by_id_.push_back(region);
  table->by_id_.insert(table->by_id_.end(), added.begin(), added.end());
  const auto by_id = [](const RegionInfo& a, const RegionInfo& b) { return a.id < b.id; };
  std::stable_sort(table->by_id_.begin(), table->by_id_.end(), by_id);
  table->by_base_.resize(table->by_id_.size());
  std::iota(table->by_base_.begin(), table->by_base_.end(), 0u);
  std::sort(table->by_base_.begin(), table->by_base_.end(),
            [&](uint32_t a, uint32_t b) { return table->by_id_[a].base < table->by_id_[b].base; });
  return table;
}

const RegionInfo* RegionTable::find(RegionId id) const {
  const auto at = std::lower_bound(by_id_.begin(), by_id_.end(), id,
                                   [](const RegionInfo& region, RegionId wanted) { return region.id < wanted; });
  return at != by_id_.end() && at->id == id ? &*at : nullptr;
}

const RegionInfo* RegionTable::find_address(uint64_t address, uint64_t length) const {
  const auto after = std::upper_bound(by_base_.begin(), by_base_.end(), address,
                                      [&](uint64_t wanted, uint32_t index) { return wanted < by_id_[index].base; });
  if (after == by_base_.begin()) return nullptr;
  const RegionInfo& region = by_id_[*std::prev(after)];
  const uint64_t offset = address - region.base;
  return offset < region.length && length <= region.length - offset ? &region : nullptr;
}

}  // namespace kvferry
