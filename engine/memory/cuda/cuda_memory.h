#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "common/fd.h"
#include "engine/memory/cuda/device.h"
#include "engine/memory/cuda/driver.h"
#include "engine/memory/cuda/pinned_pool.h"
#include "engine/memory/memory_kind.h"

namespace kvferry::cuda {

struct Options {
  std::string library = "libcuda.so.1";
  Gather gather = Gather::automatic;
  // The compiled kernel; by default what nvcc made when this was built, or nothing.
  std::span<const unsigned char> image = compiled_kernel();

  static std::span<const unsigned char> compiled_kernel();
};

// Memory of NVIDIA GPUs. The driver is not loaded before the first registration asks for it: a process that never
// registers any may fork and pays for nothing. Thread-safe; it may be called in any thread, and leaves the thread's
// current context as it was.
//
// Copies run on streams of its own and are ordered with the owner's work by the events that the engine waits for.
// Events are the driver's (CUevent, cudaEvent_t) as numbers.
class CudaMemory final : public MemoryOps, public SharedMemoryOps, public FabricMemoryOps {
 public:
  explicit CudaMemory(Options options) : options_(std::move(options)) {}
  ~CudaMemory() override;
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;

  MemoryKind kind() const override { return MemoryKind::cuda; }
  // Managed memory counts as the host's: the CPU may touch it.
  bool owns(const void* address) const override { return Driver::owns(options_.library, address); }
  // Prepares the range too: CU_POINTER_ATTRIBUTE_SYNC_MEMOPS.
  Status check(const void* base, size_t length) override;
  bool host_addressable() const override { return false; }
  std::byte* allocate_staging(size_t length) override;
  void free_staging(std::byte* staging, size_t length) override;
  Result<CopyId> start_copy(CopyDirection direction, std::span<const CopySpan> spans) override;
  Result<bool> copy_done(CopyId copy) override;
  Result<bool> event_done(EventId event) override;
  SharedMemoryOps* sharing() override { return this; }
  FabricMemoryOps* for_fabrics() override { return this; }
  Place place_of(const void* address, const Topology& topology) override;
  std::string describe() const override;

  // By CUDA IPC (cuda_sharing.cc).
  std::string share(const void* base, size_t length) override;
  Result<std::shared_ptr<std::byte>> map(std::string_view key, uint64_t length) override;
  Status copy(std::span<const DirectCopy> copies) override;

  // By GPUDirect RDMA (cuda_fabrics.cc).
  Status expose(void* base, uint64_t length, const std::function<Status(const FabricRange&)>& use) override;
  Status settle_writes(std::span<const void* const> addresses) override;

 private:
  // An allocation of the driver's, as it was when a registration or a copy asked for it.
  struct Range {
    DevicePointer end;
    Device* device;
  };
  // What a copy does on one device.
  struct Part {
    Device* device = nullptr;
    Stream stream = nullptr;
    CuEvent event = nullptr;
    std::byte* table = nullptr;  // of the kernel; pinned
  };
  using Copy = std::vector<Part>;
  // An allocation of another process.
  struct Import {
    Device* device;
    DevicePointer base;
    size_t users = 0;
  };

  // All of these REQUIRE mutex_.
  Status load();
  Result<Device*> device(DeviceNumber number);
  Result<Range> look_up(DevicePointer pointer);
  Result<Device*> device_of(const CopySpan& span);
  Status prepare(DevicePointer pointer, Device& device);
  Status start_on(Device& device, CopyDirection direction, std::span<const CopySpan> spans, Copy& copy);
  Status enqueue(Part& part, CopyDirection direction, std::span<const CopySpan> spans);
  bool worth_a_table(std::span<const CopySpan> spans) const;
  void settle(Part& part);
  Result<bool> part_done(Part& part);
  Result<Device*> device_with(const Uuid& uuid);
  Result<Import> open_import(const IpcHandle& handle, Device& device);
  void close_import(const Import& import);
  Result<Device*> exposed_device(DevicePointer at);
  UniqueFd open_dmabuf(const Device& device, DevicePointer at, uint64_t length, uint64_t& offset) const;

  const Options options_;
  mutable std::mutex mutex_;
  std::shared_ptr<const Driver> driver_;  // null: not loaded
  std::map<DeviceNumber, std::unique_ptr<Device>> devices_;
  std::unique_ptr<PinnedPool> pool_;
  std::map<DevicePointer, Range> ranges_;  // a cache, by start; registration renews what it covers
  std::map<CopyId, Copy> copies_;
  CopyId next_copy_ = 1;
  std::map<std::string, Import> imports_;  // by handle
  size_t unsynchronised_ = 0;              // ranges whose allocator does not offer SYNC_MEMOPS
};

}  // namespace kvferry::cuda
