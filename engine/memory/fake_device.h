#pragma once

#include <map>
#include <mutex>
#include <vector>

#include "engine/memory/memory_kind.h"

namespace kvferry {

// Device memory without a device: its addresses are PROT_NONE, so that a code path that dereferences one dies on the
// spot, and its bytes live elsewhere. A copy lands only at the second copy_done(), so that code which does not wait
// for it sees old bytes. Thread-safe.
class FakeDevice : public MemoryOps {
 public:
  FakeDevice() = default;
  ~FakeDevice() override;
  FakeDevice(const FakeDevice&) = delete;
  FakeDevice& operator=(const FakeDevice&) = delete;

  // Zeroed device memory; freed with the device.
  Result<std::byte*> allocate(size_t length);
  // For tests: the bytes behind a device address, synchronously.
  Status store(std::byte* device, const void* from, size_t length);
  Status load(void* into, const std::byte* device, size_t length) const;

  // An event that is done when signal() is called; one that was destroyed before is an error to who waits for it.
  EventId create_event();
  void signal(EventId event);
  void destroy_event(EventId event);

  MemoryKind kind() const override { return MemoryKind::fake; }
  Status check(const void* base, size_t length) override;
  bool host_addressable() const override { return false; }
  std::byte* allocate_staging(size_t length) override;
  void free_staging(std::byte* staging, size_t length) override;
  Result<CopyId> start_copy(CopyDirection direction, std::span<const CopySpan> spans) override;
  Result<bool> copy_done(CopyId copy) override;
  Result<bool> event_done(EventId event) override;
  std::string describe() const override { return "ready"; }

 private:
  struct Block {
    size_t length;
    std::byte* backing;
  };
  struct Copy {
    CopyDirection direction;
    std::vector<CopySpan> spans;
    int polls = 0;
  };
  // The backing bytes of a device range, or null. REQUIRES: mutex_.
  std::byte* backing_of(const std::byte* device, size_t length) const;

  mutable std::mutex mutex_;
  std::map<const std::byte*, Block> blocks_;
  std::map<CopyId, Copy> copies_;
  CopyId next_copy_ = 1;
  std::map<EventId, bool> events_;  // whether it is done
  EventId next_event_ = 1;
};

}  // namespace kvferry
