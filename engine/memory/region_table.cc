#include "engine/memory/region_table.h"

#include <algorithm>

namespace kvferry {

namespace {

constexpr uint32_t kGone = UINT32_MAX;

}  // namespace

// Sorts what changes only and walks over the rest: a peer may change a large table again and again (I6).
std::shared_ptr<const RegionTable> RegionTable::next(const RegionTable& before, std::span<const RegionInfo> added,
                                                     std::span<const RegionId> removed) {
  std::vector<RegionId> gone(removed.begin(), removed.end());
  std::sort(gone.begin(), gone.end());
  std::vector<RegionInfo> fresh(added.begin(), added.end());
  std::stable_sort(fresh.begin(), fresh.end(), [](const auto& a, const auto& b) { return a.id < b.id; });

  auto table = std::make_shared<RegionTable>();
  auto& by_id = table->by_id_;
  auto& by_base = table->by_base_;
  by_id.reserve(before.by_id_.size() + fresh.size());
  std::vector<uint32_t> place(before.by_id_.size(), kGone);  // in the new table, of each region of the old one
  std::vector<uint32_t> fresh_places;
  auto next_fresh = fresh.begin();
  const auto add_fresh = [&] {
    fresh_places.push_back(static_cast<uint32_t>(by_id.size()));
    by_id.push_back(std::move(*next_fresh++));
  };
  auto next_gone = gone.begin();
  for (size_t i = 0; i < place.size(); ++i) {
    const RegionInfo& region = before.by_id_[i];
    while (next_fresh != fresh.end() && next_fresh->id < region.id) add_fresh();
    while (next_gone != gone.end() && *next_gone < region.id) ++next_gone;
    if (next_gone != gone.end() && *next_gone == region.id) continue;
    place[i] = static_cast<uint32_t>(by_id.size());
    by_id.push_back(region);
  }
  while (next_fresh != fresh.end()) add_fresh();
  for (const RegionInfo& region : by_id) table->key_bytes_ += kvferry::key_bytes(region);

  const auto lower = [&](uint32_t a, uint32_t b) { return by_id[a].base < by_id[b].base; };
  by_base.reserve(by_id.size());
  for (const uint32_t old : before.by_base_)
    if (place[old] != kGone) by_base.push_back(place[old]);
  const auto kept = static_cast<ptrdiff_t>(by_base.size());
  std::stable_sort(fresh_places.begin(), fresh_places.end(), lower);
  by_base.insert(by_base.end(), fresh_places.begin(), fresh_places.end());
  std::inplace_merge(by_base.begin(), by_base.begin() + kept, by_base.end(), lower);
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
