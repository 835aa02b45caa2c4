#pragma once

#include <map>
#include <vector>

#include "engine/memory/memory_kind.h"

namespace kvferry::simulator {

// The device of one machine: what it holds lies in the machine's memory like everything else, where checks can see it,
// but the engine is told that it must not touch it. A copy lands as a whole, when it is asked after for the second to
// fourth time: before that, whoever does not wait finds old bytes, and a copy that nobody waits for lands too late.
class SimDevice final : public MemoryOps {
 public:
  EventId create_event();
  // All work before the event is done, or the device has failed at it.
  void signal(EventId event, bool failed);

  MemoryKind kind() const override { return MemoryKind::fake; }
  Status check(const void*, size_t) override { return {}; }
  bool host_addressable() const override { return false; }
  std::byte* allocate_staging(size_t length) override;
  void free_staging(std::byte* staging, size_t length) override;
  Result<CopyId> start_copy(CopyDirection direction, std::span<const CopySpan> spans) override;
  Result<bool> copy_done(CopyId id) override;
  Result<bool> event_done(EventId event) override;
  std::string describe() const override { return "simulated"; }

 private:
  struct Copy {
    CopyDirection direction;
    std::vector<CopySpan> spans;
    int polls_left;
  };
  enum class Event : uint8_t { pending, done, failed };

  std::map<CopyId, Copy> copies_;
  CopyId next_copy_ = 1;
  std::map<EventId, Event> events_;
  EventId next_event_ = 1;
};

}  // namespace kvferry::simulator
