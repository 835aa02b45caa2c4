#pragma once

#include <memory>
#include <span>
#include <vector>

#include "engine/memory/region.h"

namespace kvferry {

// One version of a peer's region table: immutable, so that callers' threads may hold it while the session goes on.
class RegionTable {
 public:
  RegionTable() = default;
  // What `before` becomes by removing, then adding.
  static std::shared_ptr<const RegionTable> next(const RegionTable& before, std::span<const RegionInfo> added,
                                                 std::span<const RegionId> removed);

  // Null when there is no such region.
  const RegionInfo* find(RegionId id) const;
  // The region that holds all of [address, address + length) in the owner's address space, or null.
  const RegionInfo* find_address(uint64_t address, uint64_t length) const;
  const std::vector<RegionInfo>& regions() const { return by_id_; }
  // Of all regions.
  size_t key_bytes() const { return key_bytes_; }

 private:
  std::vector<RegionInfo> by_id_;
  std::vector<uint32_t> by_base_;  // indices into by_id_
  size_t key_bytes_ = 0;
};

}  // namespace kvferry
