#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "test/support/fake_cuda/world.h"

// GPUDirect RDMA: what NICs do to the memory of GPUs, and what the driver does about it.

namespace kvferry::fake_cuda {

void show_writes(int device) {
  World& w = world();
  for (auto write = w.unseen.begin(); write != w.unseen.end();) {
    if (write->device != device) {
      ++write;
      continue;
    }
    std::byte* const place = reach(write->to, write->bytes.size(), device);
    if (place != nullptr) std::memcpy(place, write->bytes.data(), write->bytes.size());
    write = w.unseen.erase(write);
  }
}

// A read of the bus comes behind all writes before it.
bool nic_read(void* into, uint64_t address, uint64_t length) {
  const Allocation* allocation = find(address);
  if (allocation == nullptr) return false;
  show_writes(allocation->device);
  const std::byte* const place = reach(address, length, allocation->device);
  if (place != nullptr) std::memcpy(into, place, length);
  return place != nullptr;
}

bool nic_write(uint64_t address, const void* from, uint64_t length) {
  World& w = world();
  const Allocation* allocation = find(address);
  if (allocation == nullptr || reach(address, length, allocation->device) == nullptr) return false;
  const auto* bytes = static_cast<const std::byte*>(from);
  w.unseen.push_back({address, {bytes, bytes + length}, allocation->device});
  if (w.rdma.ordered) show_writes(allocation->device);
  return true;
}

KVF_FAKE Code cuDeviceGetAttribute(int* value, int attribute, int device) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  if (device < 0 || device >= kDevices) return cuda::kInvalidDevice;
  switch (attribute) {
    case cuda::kDeviceDirectRdma:
      *value = w.rdma.direct ? 1 : 0;
      return cuda::kSuccess;
    case cuda::kDeviceDmabuf:
      *value = w.rdma.dmabuf ? 1 : 0;
      return cuda::kSuccess;
    case cuda::kDeviceFlushOptions:
      *value = w.rdma.flush ? cuda::kFlushByHost : 0;
      return cuda::kSuccess;
    case cuda::kDeviceWritesOrdering:
      *value = w.rdma.ordered ? cuda::kOrderedForAll : 0;
      return cuda::kSuccess;
    case cuda::kDevicePciBus:  // GPU 0 is 0000:20:00.0, GPU 1 0000:21:00.0
      *value = 0x20 + device;
      return cuda::kSuccess;
    case cuda::kDevicePciDomain:
    case cuda::kDevicePciDevice:
      *value = 0;
      return cuda::kSuccess;
    default:
      return cuda::kInvalidValue;
  }
}

KVF_FAKE Code cuFlushGPUDirectRDMAWrites(int target, int scope) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  if (current() == nullptr) return cuda::kInvalidContext;
  if (target != cuda::kFlushCurrentContext || scope != cuda::kFlushToAll) return cuda::kInvalidValue;
  if (!w.rdma.flush) return cuda::kNotSupported;
  ++w.flushes;
  show_writes(current()->device);
  return cuda::kSuccess;
}

KVF_FAKE Code cuMemGetHandleForAddressRange(void* handle, DevicePointer start, size_t size, int type,
                                            unsigned long long flags) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  if (current() == nullptr) return cuda::kInvalidContext;
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  if (type != cuda::kRangeDmabuf || flags != 0 || size == 0 || start % page != 0 || size % page != 0)
    return cuda::kInvalidValue;
  size_t offset = 0;
  const Allocation* allocation = find(start, &offset);
  if (allocation == nullptr || allocation->imported || offset + size > (allocation->size + page - 1) / page * page)
    return cuda::kInvalidValue;
  if (!w.rdma.dmabuf) return cuda::kNotSupported;
  const int descriptor = ::fcntl(allocation->fd.get(), F_DUPFD_CLOEXEC, 0);
  if (descriptor < 0) return cuda::kUnknown;
  ++w.dmabufs;
  *static_cast<int*>(handle) = descriptor;
  return cuda::kSuccess;
}

}  // namespace kvferry::fake_cuda
