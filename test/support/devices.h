#pragma once

#include <cstddef>
#include <memory>

#include "engine/memory/memory_kind.h"

namespace kvferry::test {

// Where tests put memory that the CPU cannot touch: filled and inspected without the engine, all of it freed with the
// device. A test that fails here has no device to be tested on, so that nothing returns an error.
class TestDevice {
 public:
  virtual ~TestDevice() = default;

  // What an engine is given. Must end before the device does.
  virtual std::shared_ptr<MemoryOps> ops() = 0;
  virtual std::byte* allocate(size_t length) = 0;
  virtual void store(std::byte* device, const void* from, size_t length) = 0;
  virtual void load(void* into, const std::byte* device, size_t length) const = 0;

  // An event that is done when signal() is called; one that was destroyed before is an error to who waits for it.
  virtual EventId create_event() = 0;
  virtual void signal(EventId event) = 0;
  virtual void destroy_event(EventId event) = 0;

  MemoryKind kind() { return ops()->kind(); }
};

// Null for host memory. `cuda` is the fake driver of the tests, or the real one where KVFERRY_CUDA_DRIVER names it.
std::shared_ptr<TestDevice> make_device(MemoryKind kind);

}  // namespace kvferry::test
