#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/result.h"
#include "engine/io/place.h"
#include "engine/memory/gate.h"
#include "engine/memory/memory_kind.h"

namespace kvferry {

// Names a region of one incarnation of an engine; never reused within it. It doubles as the region's generation: the
// region's word in the gate holds this number as long as the region is registered.
using RegionId = uint64_t;

enum Permission : uint32_t {
  kPrivate = 0,  // only parcels give access
  kRemoteRead = 1,
  kRemoteWrite = 2,
  kRemoteReadWrite = 3,
};

// How one-sided fabrics reach a region: bytes for peers, by the fabric's name. Made when it is registered, never
// changed.
using RegionKeys = std::vector<std::pair<std::string, std::string>>;

// A region as its owner describes it to peers.
struct RegionInfo {
  RegionId id = 0;
  MemoryKind kind = MemoryKind::host;
  uint32_t permissions = kPrivate;
  WordIndex word = kNoWord;
  uint64_t base = 0;  // the owner's address: meaningful to the `local` fabric and as a name in the Mooncake-like face
  uint64_t length = 0;
  std::shared_ptr<const RegionKeys> keys = nullptr;  // null: none
};

// Null when the region has no key of that fabric.
const std::string* find_key(const RegionInfo& region, std::string_view fabric);
// What its keys take, about.
size_t key_bytes(const RegionInfo& region);

// A fabric that has to know memory before it moves bytes from or to it. Thread-safe.
class RegionMapper {
 public:
  struct Mapping {
    void* handle;
    std::string key;  // for peers
  };
  virtual ~RegionMapper() = default;
  virtual const char* fabric() const = 0;
  virtual Result<Mapping> map(const FabricRange& range) = 0;
  virtual void unmap(void* handle) = 0;
};

// A registered range inside its engine. Shared by the registry and by whoever uses the memory.
struct RegionState {
  RegionInfo info;
  MemoryOps* ops = nullptr;
  Place place;  // where fabrics' devices are chosen by it; else not looked up
  std::atomic<bool> closing{false};
  std::atomic<uint32_t> pins{0};  // uses in flight by this process: copies, queued sends, posted receives
  std::vector<std::pair<RegionMapper*, void*>> mappings;  // from registration to forget()

  std::byte* at(uint64_t offset) const { return reinterpret_cast<std::byte*>(info.base + offset); }
};

// One use in flight of a region: unregister waits until none is left (I4). Movable; may outlive the registry's entry.
class RegionPin {
 public:
  RegionPin() = default;
  RegionPin(RegionPin&& other) noexcept : region_(std::move(other.region_)) {}
  RegionPin& operator=(RegionPin&& other) noexcept {
    if (this != &other) {
      release();
      region_ = std::move(other.region_);
    }
    return *this;
  }
  ~RegionPin() { release(); }

  // Empty when the region is closing. The pin is visible before `closing` is read, as unregister writes `closing`
  // before it reads the pins: one of the two sees the other.
  static RegionPin take(std::shared_ptr<RegionState> region) {
    RegionPin pin;
    region->pins.fetch_add(1, std::memory_order_seq_cst);
    pin.region_ = std::move(region);
    if (pin.region_->closing.load(std::memory_order_seq_cst)) pin.release();
    return pin;
  }

  // One more on the same region, closing or not.
  RegionPin another() const {
    RegionPin pin;
    region_->pins.fetch_add(1, std::memory_order_seq_cst);
    pin.region_ = region_;
    return pin;
  }
  // How that fabric knows the region; null when it does not.
  void* handle_of(const RegionMapper& mapper) const {
    for (const auto& [known, handle] : region_->mappings)
      if (known == &mapper) return handle;
    return nullptr;
  }

  explicit operator bool() const { return region_ != nullptr; }
  const RegionState* operator->() const { return region_.get(); }
  const RegionState* get() const { return region_.get(); }
  void release() {
    if (region_ == nullptr) return;
    region_->pins.fetch_sub(1, std::memory_order_seq_cst);
    region_.reset();
  }

 private:
  std::shared_ptr<RegionState> region_;
};

}  // namespace kvferry
