#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "engine/memory/gate.h"
#include "engine/memory/region_table.h"

namespace kvferry::local {

// Regions of the owner's devices that are mapped into this process: from the first use until the owner's table no
// longer has the region, or the session ends. While one is mapped a slot names it, so that the owner's unregister()
// waits until it is unmapped here, as it waits for writers (I4): to free memory that others have mapped is undefined.
// Thread-safe.
class Imports {
 public:
  // A region in use. It may outlast forget(), and must not outlast the Imports.
  struct Import {
    std::shared_ptr<std::byte> base;
    GateSlots* slots = nullptr;
    int slot = -1;
    ~Import() {
      base.reset();
      if (slot >= 0) slots->clear(slot);
    }
  };
  // Whether the owner's word still holds the region's generation.
  using InForce = std::function<bool(const RegionInfo&)>;

  // `own_process`: the owner lives in this very process, where its addresses can be used as they are.
  Imports(GateSlots& slots, bool own_process, InForce in_force)
      : slots_(slots), own_process_(own_process), in_force_(std::move(in_force)) {}

  // Maps the region if it is not. What failed once is not tried again.
  Result<std::shared_ptr<const Import>> use(SharedMemoryOps& sharing, const RegionInfo& region);
  // Unmaps what the table does not have.
  void keep_only(const RegionTable& table);
  // Unmaps all, and maps nothing any more.
  void close();

 private:
  Result<std::shared_ptr<const Import>> map(SharedMemoryOps& sharing, const RegionInfo& region);

  GateSlots& slots_;
  const bool own_process_;
  const InForce in_force_;
  std::mutex mutex_;
  bool closed_ = false;                                          // GUARDED_BY(mutex_)
  std::map<RegionId, std::shared_ptr<const Import>> by_region_;  // GUARDED_BY(mutex_)
  std::map<RegionId, Error> refused_;                            // GUARDED_BY(mutex_)
};

}  // namespace kvferry::local
