#pragma once

#include <map>
#include <mutex>
#include <string>

#include "engine/memory/cuda/cuda_memory.h"
#include "test/support/devices.h"
#include "test/support/fake_cuda/control.h"

namespace kvferry::test {

// The driver that tests of the CUDA kind load: the fake one, or what KVFERRY_CUDA_DRIVER names.
std::string cuda_driver();
// A function that only tests use, or null.
void* driver_symbol(const char* name);
template <class F>
F driver_symbol(const char* name) {
  return reinterpret_cast<F>(driver_symbol(name));
}
// Null where the driver is not the fake one.
const fake_cuda::Control* fake_control();
// The context that is current in this thread.
cuda::Context current_context();
// A stand-in for the compiled kernel, which the fake driver takes for it, so that builds without nvcc run it too; for a
// real driver what was compiled, or nothing.
std::span<const unsigned char> test_kernel();

// GPUs, the memory taken from one after another in turn.
class CudaDevice final : public TestDevice {
 public:
  explicit CudaDevice(cuda::Gather gather = cuda::Gather::automatic);
  ~CudaDevice() override;

  std::shared_ptr<MemoryOps> ops() override { return ops_; }
  std::byte* allocate(size_t length) override;
  void store(std::byte* device, const void* from, size_t length) override;
  void load(void* into, const std::byte* device, size_t length) const override;
  EventId create_event() override;
  void signal(EventId event) override;
  void destroy_event(EventId event) override;

  const cuda::Driver& driver() const { return *driver_; }
  cuda::Context context_of(const std::byte* address) const;

 private:
  struct Gate {
    cuda::Stream stream;
    uint32_t* word;  // pinned
    bool destroyed = false;
  };

  std::shared_ptr<const cuda::Driver> driver_;
  std::shared_ptr<MemoryOps> ops_;
  mutable std::mutex mutex_;
  std::vector<cuda::Context> contexts_;
  std::map<const std::byte*, size_t> memory_;  // the GPU of each
  size_t next_ = 0;
  std::map<EventId, Gate> gates_;
};

}  // namespace kvferry::test
