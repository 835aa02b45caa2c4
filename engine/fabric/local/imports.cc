#include "engine/fabric/local/imports.h"

#include <utility>
#include <vector>

namespace kvferry::local {

Result<std::shared_ptr<const Imports::Import>> Imports::map(SharedMemoryOps& sharing, const RegionInfo& region) {
  const std::string* key = find_key(region, "local");
  if (key == nullptr || region.word == kNoWord)
    return Error{ErrorCode::unsupported, "the owner's memory cannot be mapped by another process"};
  auto import = std::make_shared<Import>();
  import->slots = &slots_;
  import->slot = slots_.mark_mapping(region.word);
  if (import->slot < 0)
    return Error{ErrorCode::resource_exhausted, "as many regions of the owner are mapped as can be"};
  // The slot first, then the word: the owner closes the word before it looks at the slots (I4).
  if (!in_force_(region))
    return Error{ErrorCode::not_found, "region " + std::to_string(region.id) + " was unregistered"};
  if (own_process_) {
    import->base = std::shared_ptr<std::byte>(reinterpret_cast<std::byte*>(region.base), [](std::byte*){});
  } else {
    KVF_ASSIGN_OR_RETURN(import->base, sharing.map(*key, region.length));
  }
  return std::shared_ptr<const Import>(import);
}

Result<std::shared_ptr<const Imports::Import>> Imports::use(SharedMemoryOps& sharing, const RegionInfo& region) {
  const std::lock_guard lock(mutex_);
  if (closed_) return Error{ErrorCode::peer_lost, "the session has ended"};
  if (const auto found = by_region_.find(region.id); found != by_region_.end()) return found->second;
  if (const auto found = refused_.find(region.id); found != refused_.end()) return found->second;
  auto mapped = map(sharing, region);
  if (mapped)
    by_region_.emplace(region.id, *mapped);
  else
    refused_.emplace(region.id, mapped.error());
  return mapped;
}

void Imports::keep_only(const RegionTable& table) {
  std::vector<std::shared_ptr<const Import>> dropped;  // unmapped without the lock
  const std::lock_guard lock(mutex_);
  std::erase_if(refused_, [&](const auto& entry) { return table.find(entry.first) == nullptr; });
  std::erase_if(by_region_, [&](auto& entry) {
    if (table.find(entry.first) != nullptr) return false;
    dropped.push_back(std::move(entry.second));
    return true;
  });
}

void Imports::close() {
  std::map<RegionId, std::shared_ptr<const Import>> dropped;
  const std::lock_guard lock(mutex_);
  closed_ = true;
  dropped.swap(by_region_);
}

}  // namespace kvferry::local
