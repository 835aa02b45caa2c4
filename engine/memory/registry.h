#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/memory/region.h"

namespace kvferry {

Status check_span(const RegionInfo& region, uint64_t offset, uint64_t length);

// The regions of one engine. Thread-safe.
class Registry {
 public:
  // `words` outlives the registry. `max_regions`: about 200 bytes each here and 60 in each peer's table.
  // Ids count up from `first_id`: a random one, so that an id of an engine that was here before names nothing (I5).
  Registry(MemoryKinds kinds, GateWords& words, size_t max_regions, RegionId first_id)
      : kinds_(std::move(kinds)), words_(words), max_regions_(max_regions), next_id_(first_id) {}

  // Before anything is registered. Memory is made known to each mapper, which outlives the registry's use. Host memory
  // that one of them cannot take is not registered; memory of devices then has no key of that fabric, and goes by
  // others.
  void add_mapper(RegionMapper* mapper) { mappers_.push_back(mapper); }
  // Likewise: regions have a place from then on, for devices that are chosen by it.
  void set_topology(std::shared_ptr<const Topology> topology) { topology_ = std::move(topology); }
  // Hears of the first range of each kind that a mapper does not take, in the registering thread.
  void on_unmapped(std::function<void(const std::string& why)> tell) { tell_unmapped_ = std::move(tell); }

  Result<RegionInfo> add(void* base, uint64_t length, MemoryKind kind, uint32_t permissions);

  // Takes the region out of all look-ups and ends its generation; what is in flight goes on. The state tells by its
  // pins when this process no longer uses the memory. From here to forget() the range cannot be registered again.
  Result<std::shared_ptr<RegionState>> begin_close(RegionId id);
  void forget(RegionState& region);
  // At the end of the engine, before its fabrics close: what is still between the two is taken from the mappers.
  void unmap_quarantined();

  // A pin on the region that holds all of [address, address + length), for the initiator's own spans.
  Result<RegionPin> pin_local(const void* address, uint64_t length) const;
  // A pin on a region that a peer names, if it is open for `needed` (a Permission). The caller checks its spans with
  // check_span().
  Result<RegionPin> pin_remote(RegionId id, uint32_t needed) const;

  Result<RegionInfo> find_by_base(const void* base) const;
  std::vector<RegionInfo> snapshot() const;

  // The table as it changed, for the copies that peers hold.
  struct Changes {
    uint64_t version = 0;  // of the table with these changes
    bool reset = false;    // `added` is the whole table: the log no longer reaches back to `since`
    std::vector<RegionInfo> added;
    std::vector<RegionId> removed;
  };
  Changes changes_since(uint64_t since) const;
  uint64_t version() const;  // 0: nothing was ever registered
  size_t quarantined() const;
  MemoryKind kind_of(const void* address) const { return kinds_.kind_of(address); }
  std::string describe_kinds() const;

 private:
  using ByBase = std::map<uint64_t, std::shared_ptr<RegionState>>;
  struct Change {
    uint64_t version;
    RegionId id;
    bool added;
  };
  static constexpr size_t kMaxLog = 8192;  // changes; 24 bytes each
  void log_change(RegionId id, bool added);
  Result<RegionInfo> insert(const std::shared_ptr<RegionState>& region);
  Status map(RegionState& region);
  Status map_host(RegionState& region) const;
  void map_device(RegionState& region, FabricMemoryOps& ops);
  void note_unmapped(MemoryKind kind, const char* fabric, const Error& why);
  static void unmap(RegionState& region);
  bool overlaps(const ByBase& regions, uint64_t base, uint64_t length) const;

  const MemoryKinds kinds_;
  GateWords& words_;
  const size_t max_regions_;
  std::vector<RegionMapper*> mappers_;
  std::shared_ptr<const Topology> topology_;
  std::function<void(const std::string&)> tell_unmapped_;

  mutable std::shared_mutex mutex_;
  ByBase by_base_;  // open regions
  ByBase closing_;  // between begin_close() and forget(): quarantined (I4)
  std::unordered_map<RegionId, std::shared_ptr<RegionState>> by_id_;
  RegionId next_id_;
  uint64_t version_ = 0;
  std::deque<Change> log_;
  std::map<std::pair<MemoryKind, std::string>, std::string> unmapped_;  // by kind and fabric: why, the first time
};

}  // namespace kvferry
