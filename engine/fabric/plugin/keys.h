#pragma once

#include <string>
#include <unordered_map>

#include "engine/fabric/plugin/node.h"
#include "engine/memory/region_table.h"

namespace kvferry::plugin {

// A peer's keys, each imported once for the connection that stands. On loop only.
class KeyRing {
 public:
  explicit KeyRing(const Node& node) : node_(node) {}
  ~KeyRing() { drop_all(); }
  KeyRing(const KeyRing&) = delete;
  KeyRing& operator=(const KeyRing&) = delete;

  // REQUIRES: the connection stands. A key that is imported before reaches memory by messages only.
  Result<kvf_key*> get(kvf_endpoint* endpoint, const RegionInfo& region);
  // Those of regions that the peer no longer has. REQUIRES: nothing in flight uses them.
  void drop_missing(const RegionTable& table);
  // With the connection.
  void drop_all();

 private:
  static constexpr size_t kMaxKeys = 65536;  // I6: about 200 bytes each here; private regions' come with tickets
  const Node& node_;
  std::unordered_map<RegionId, kvf_key*> keys_;
  RegionId last_ = 0;
  kvf_key* last_key_ = nullptr;
};

}  // namespace kvferry::plugin
