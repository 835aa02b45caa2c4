#include "engine/fabric/plugin/keys.h"

#include <fmt/format.h>

namespace kvferry::plugin {

Result<kvf_key*> KeyRing::get(kvf_endpoint* endpoint, const RegionInfo& region) {
  if (region.id == last_ && last_key_ != nullptr) return last_key_;
  auto found = keys_.find(region.id);
  if (found == keys_.end()) {
    const std::string* bytes = find_key(region, node_.fabric());
    if (bytes == nullptr)
      return Error{ErrorCode::unsupported, fmt::format("region {} has no key of fabric {}", region.id, node_.fabric())};
    if (keys_.size() >= kMaxKeys)
      return Error{ErrorCode::resource_exhausted, fmt::format("{} keys of one peer are in use", kMaxKeys)};
    kvf_key* key = nullptr;
    Why why;
    if (node_.table().import_key(endpoint, bytes->data(), bytes->size(), &key, why.text()) != KVF_OK)
      return Error{ErrorCode::protocol, fmt::format("the key of region {} cannot be used", region.id), why.str()};
    found = keys_.emplace(region.id, key).first;
  }
  last_ = region.id;
  last_key_ = found->second;
  return found->second;
}

void KeyRing::drop_missing(const RegionTable& table) {
  last_key_ = nullptr;
  for (auto entry = keys_.begin(); entry != keys_.end();) {
    if (table.find(entry->first) != nullptr) {
      ++entry;
      continue;
    }
    node_.table().drop_key(entry->second);
    entry = keys_.erase(entry);
  }
}

void KeyRing::drop_all() {
  last_key_ = nullptr;
  for (const auto& [id, key] : keys_) node_.table().drop_key(key);
  keys_.clear();
}

}  // namespace kvferry::plugin
