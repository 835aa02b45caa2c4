#include "engine/memory/registry.h"

#include <fmt/format.h>

#include <mutex>

namespace kvferry {
namespace {

const char* name_of(uint32_t permission) {
  return permission == kRemoteWrite ? "write" : "read";
}

}  // namespace

size_t key_bytes(const RegionInfo& region) {
  constexpr size_t kOfEach = 2 * sizeof(std::string);
  size_t out = 0;
  if (region.keys != nullptr)
    for (const auto& [fabric, key] : *region.keys) out += kOfEach + fabric.size() + key.size();
  return out;
}

const std::string* find_key(const RegionInfo& region, std::string_view fabric) {
  if (!region.keys) return nullptr;
  for (const auto& [name, key] : *region.keys)
    if (name == fabric) return &key;
  return nullptr;
}

Status check_span(const RegionInfo& region, uint64_t offset, uint64_t length) {
  if (offset <= region.length && length <= region.length - offset) return {};
  return Error{ErrorCode::invalid_argument, fmt::format("{} bytes at offset {} are outside of region {} ({} bytes)",
                                                        length, offset, region.id, region.length)};
}

bool Registry::overlaps(const ByBase& regions, uint64_t base, uint64_t length) const {
  auto next = regions.lower_bound(base);
  if (next != regions.end() && next->first < base + length) return true;
  if (next == regions.begin()) return false;
  const RegionInfo& before = std::prev(next)->second->info;
  return before.base + before.length > base;
}

Result<RegionInfo> Registry::add(void* address, uint64_t length, MemoryKind kind, uint32_t permissions) {
  KVF_ASSIGN_OR_RETURN(MemoryOps * ops, kinds_.find(kind));
  KVF_RETURN_IF_ERROR(ops->check(address, length));
  const auto base = reinterpret_cast<uint64_t>(address);
  if (base + length < base) return Error{ErrorCode::invalid_argument, "memory to register wraps around"};

  auto region = std::make_shared<RegionState>();
  region->ops = ops;
  region->info = RegionInfo{0, kind, permissions, kNoWord, base, length};
  if (SharedMemoryOps* sharing = ops->sharing())
    if (std::string key = sharing->share(address, length); !key.empty())
      region->info.keys = std::make_shared<RegionKeys>(RegionKeys{{"local", std::move(key)}});
  KVF_RETURN_IF_ERROR(map(*region));
  auto added = insert(region);
  if (!added) unmap(*region);
  return added;
}

Status Registry::map(RegionState& region) {
  if (mappers_.empty()) return {};
  if (region.ops->host_addressable()) {
    if (topology_) region.place = place_of_memory(region.at(0));
    return map_host(region);
  }
  FabricMemoryOps* ops = region.ops->for_fabrics();
  if (ops == nullptr) return {};
  if (topology_) region.place = ops->place_of(region.at(0), *topology_);
  map_device(region, *ops);
  return {};
}

Status Registry::map_host(RegionState& region) const {
  auto keys = std::make_shared<RegionKeys>();
  for (RegionMapper* mapper : mappers_) {
    auto mapping = mapper->map({region.at(0), region.info.length});
    if (!mapping) {
      unmap(region);
      return std::move(mapping).error();
    }
    region.mappings.emplace_back(mapper, mapping->handle);
    keys->emplace_back(mapper->fabric(), std::move(mapping->key));
  }
  region.info.keys = std::move(keys);
  return {};
}

// Each mapper for itself: one that has no way to such memory leaves it to the others, and to staging memory.
void Registry::map_device(RegionState& region, FabricMemoryOps& ops) {
  auto keys = region.info.keys ? std::make_shared<RegionKeys>(*region.info.keys) : std::make_shared<RegionKeys>();
  for (RegionMapper* mapper : mappers_) {
    const Status mapped = ops.expose(region.at(0), region.info.length, [&](const FabricRange& range) -> Status {
      KVF_ASSIGN_OR_RETURN(RegionMapper::Mapping mapping, mapper->map(range));
      region.mappings.emplace_back(mapper, mapping.handle);
      keys->emplace_back(mapper->fabric(), std::move(mapping.key));
      return {};
    });
    if (!mapped.ok()) note_unmapped(region.info.kind, mapper->fabric(), mapped.error());
  }
  if (!keys->empty()) region.info.keys = std::move(keys);
}

void Registry::note_unmapped(MemoryKind kind, const char* fabric, const Error& why) {
  const std::string text = fmt::format("not by {}: {}", fabric, why.to_string());
  {
    const std::unique_lock lock(mutex_);
    if (!unmapped_.emplace(std::pair(kind, std::string(fabric)), text).second) return;
  }
  if (tell_unmapped_) tell_unmapped_(fmt::format("memory of kind {}: {}", to_string(kind), text));
}

void Registry::unmap(RegionState& region) {
  if (region.mappings.empty()) return;
  for (const auto& [mapper, handle] : region.mappings) mapper->unmap(handle);
  region.mappings.clear();
  // I4: what peers wrote and did not read back lands before the memory is given back. A device that cannot has failed.
  const void* const base = region.at(0);
  if (FabricMemoryOps* ops = region.ops->for_fabrics()) static_cast<void>(ops->settle_writes({&base, 1}));
}

Result<RegionInfo> Registry::insert(const std::shared_ptr<RegionState>& region) {
  const uint64_t base = region->info.base;
  const uint64_t length = region->info.length;
  const std::unique_lock lock(mutex_);
  if (by_id_.size() >= max_regions_)
    return Error{ErrorCode::resource_exhausted, fmt::format("max_regions ({}) are registered", max_regions_)};
  if (overlaps(by_base_, base, length)) return Error{ErrorCode::already_exists, "memory overlaps a registered region"};
  if (overlaps(closing_, base, length))
    return Error{ErrorCode::not_quiet, "memory overlaps a region that a stopped peer may still write to"};
  region->info.id = next_id_;
  KVF_ASSIGN_OR_RETURN(region->info.word, words_.open(next_id_));
  log_change(next_id_++, true);
  by_base_.emplace(base, region);
  by_id_.emplace(region->info.id, region);
  return region->info;
}

Result<std::shared_ptr<RegionState>> Registry::begin_close(RegionId id) {
  const std::unique_lock lock(mutex_);
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return Error{ErrorCode::not_found, fmt::format("no region {}", id)};
  auto region = found->second;
  by_id_.erase(found);
  by_base_.erase(region->info.base);
  closing_.emplace(region->info.base, region);
  log_change(id, false);
  region->closing.store(true, std::memory_order_seq_cst);
  words_.close(region->info.word);  // I2: the generation moves before anyone waits for quiet
  return region;
}

// I4: fabrics that enforce keys refuse whoever still uses one from here on.
void Registry::forget(RegionState& region) {
  unmap(region);
  const std::unique_lock lock(mutex_);
  closing_.erase(region.info.base);
  words_.free(region.info.word);
}

void Registry::unmap_quarantined() {
  const std::unique_lock lock(mutex_);
  for (const auto& [base, region] : closing_) unmap(*region);
}

Result<RegionPin> Registry::pin_local(const void* address, uint64_t length) const {
  const auto base = reinterpret_cast<uint64_t>(address);
  const std::shared_lock lock(mutex_);
  auto after = by_base_.upper_bound(base);
  if (after != by_base_.begin()) {
    const auto& region = std::prev(after)->second;
    const uint64_t offset = base - region->info.base;
    if (offset < region->info.length && length <= region->info.length - offset) {
      if (RegionPin pin = RegionPin::take(region)) return pin;
    }
  }
  return Error{ErrorCode::invalid_argument, fmt::format("{} bytes at {} are not registered", length, address)};
}

Result<RegionPin> Registry::pin_remote(RegionId id, uint32_t needed) const {
  const std::shared_lock lock(mutex_);
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return Error{ErrorCode::not_found, fmt::format("no region {}", id)};
  if ((found->second->info.permissions & needed) != needed)
    return Error{ErrorCode::permission_denied, fmt::format("region {} is not open for remote {}", id, name_of(needed))};
  if (RegionPin pin = RegionPin::take(found->second)) return pin;
  return Error{ErrorCode::not_found, fmt::format("no region {}", id)};
}

Result<RegionInfo> Registry::find_by_base(const void* base) const {
  const std::shared_lock lock(mutex_);
  const auto found = by_base_.find(reinterpret_cast<uint64_t>(base));
  if (found == by_base_.end()) return Error{ErrorCode::not_found, fmt::format("no region starts at {}", base)};
  return found->second->info;
}

std::vector<RegionInfo> Registry::snapshot() const {
  const std::shared_lock lock(mutex_);
  std::vector<RegionInfo> regions;
  regions.reserve(by_base_.size());
  for (const auto& [base, region] : by_base_) regions.push_back(region->info);
  return regions;
}

void Registry::log_change(RegionId id, bool added) {
  log_.push_back({++version_, id, added});
  if (log_.size() > kMaxLog) log_.pop_front();
}

Registry::Changes Registry::changes_since(uint64_t since) const {
  const std::shared_lock lock(mutex_);
  Changes changes;
  changes.version = version_;
  if (since == 0 || version_ - since > log_.size()) {
    changes.reset = true;
    for (const auto& [base, region] : by_base_) changes.added.push_back(region->info);
    return changes;
  }
  for (const Change& change : log_) {
    if (change.version <= since) continue;
    if (!change.added) {
      changes.removed.push_back(change.id);
    } else if (const auto found = by_id_.find(change.id); found != by_id_.end()) {
      changes.added.push_back(found->second->info);
    }
  }
  return changes;
}

std::string Registry::describe_kinds() const {
  return kinds_.describe([this](MemoryKind kind) {
    std::string out;
    const std::shared_lock lock(mutex_);
    for (const auto& [of, why] : unmapped_)
      if (of.first == kind) out += "; " + why;
    return out;
  });
}

uint64_t Registry::version() const {
  const std::shared_lock lock(mutex_);
  return version_;
}

size_t Registry::quarantined() const {
  const std::shared_lock lock(mutex_);
  return closing_.size();
}

}  // namespace kvferry
