#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <iterator>

#include "test/support/fake_cuda/world.h"

// Device memory, pinned memory, and what the driver says of an address.

namespace kvferry::fake_cuda {

Allocation* find(DevicePointer address, size_t* offset) {
  World& w = world();
  auto after = w.memory.upper_bound(address);
  if (after == w.memory.begin()) return nullptr;
  auto& [base, allocation] = *std::prev(after);
  if (address - base >= allocation.size) return nullptr;
  if (offset != nullptr) *offset = address - base;
  return &allocation;
}

std::byte* reach(DevicePointer address, size_t length, int device) {
  size_t offset = 0;
  Allocation* allocation = find(address, &offset);
  if (allocation == nullptr || allocation->device != device || length > allocation->size - offset) return nullptr;
  return allocation->backing + offset;
}

bool is_pinned(DevicePointer address, size_t length) {
  World& w = world();
  auto after = w.pinned.upper_bound(address);
  if (after == w.pinned.begin()) return false;
  const auto& [base, size] = *std::prev(after);
  return address - base < size && length <= size - (address - base);
}

Code map_memory(DevicePointer* address, size_t size, UniqueFd fd, int device, bool imported) {
  void* backing = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (backing == MAP_FAILED) return cuda::kOutOfMemory;
  void* place = ::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (place == MAP_FAILED) {
    ::munmap(backing, size);
    return cuda::kOutOfMemory;
  }
  *address = reinterpret_cast<DevicePointer>(place);
  world().memory.emplace(*address,
                         Allocation{size, static_cast<std::byte*>(backing), std::move(fd), device, imported, false});
  return cuda::kSuccess;
}

// ---- of the tests alone

KVF_FAKE Code cuMemAlloc_v2(DevicePointer* address, size_t size) {
  const std::lock_guard lock(world().mutex);
  if (current() == nullptr) return cuda::kInvalidContext;
  UniqueFd fd(::memfd_create("fake_cuda", MFD_CLOEXEC));
  if (fd.get() < 0 || ::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) return cuda::kOutOfMemory;
  return map_memory(address, size, std::move(fd), current()->device, false);
}

KVF_FAKE Code cuMemFree_v2(DevicePointer address) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  const auto found = w.memory.find(address);
  if (found == w.memory.end() || found->second.imported) return cuda::kInvalidValue;
  ::munmap(reinterpret_cast<void*>(address), found->second.size);
  ::munmap(found->second.backing, found->second.size);
  w.memory.erase(found);
  return cuda::kSuccess;
}

KVF_FAKE Code cuMemcpyHtoD_v2(DevicePointer to, const void* from, size_t bytes) {
  const std::lock_guard lock(world().mutex);
  if (current() == nullptr) return cuda::kInvalidContext;
  std::byte* place = reach(to, bytes, current()->device);
  if (place == nullptr) return cuda::kInvalidValue;
  std::memcpy(place, from, bytes);
  return cuda::kSuccess;
}

KVF_FAKE Code cuMemcpyDtoH_v2(void* to, DevicePointer from, size_t bytes) {
  const std::lock_guard lock(world().mutex);
  if (current() == nullptr) return cuda::kInvalidContext;
  const std::byte* place = reach(from, bytes, current()->device);
  if (place == nullptr) return cuda::kInvalidValue;
  std::memcpy(to, place, bytes);
  return cuda::kSuccess;
}

KVF_FAKE Code cuMemcpyPeer(DevicePointer to, Context to_context, DevicePointer from, Context from_context,
                           size_t bytes) {
  const std::lock_guard lock(world().mutex);
  std::byte* const there = reach(to, bytes, to_context->device);
  const std::byte* const here = reach(from, bytes, from_context->device);
  if (there == nullptr || here == nullptr) return cuda::kInvalidValue;
  std::memcpy(there, here, bytes);
  return cuda::kSuccess;
}

KVF_FAKE Code cuCtxSynchronize() {
  return current() != nullptr ? cuda::kSuccess : cuda::kInvalidContext;
}

// ---- pinned memory

KVF_FAKE Code cuMemHostAlloc(void** memory, size_t bytes, unsigned flags) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  if (current() == nullptr) return cuda::kInvalidContext;
  if ((flags & cuda::kHostMapped) == 0) return cuda::kInvalidValue;
  *memory = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  if (*memory == nullptr) return cuda::kOutOfMemory;
  w.pinned.emplace(reinterpret_cast<uint64_t>(*memory), bytes);
  return cuda::kSuccess;
}

KVF_FAKE Code cuMemFreeHost(void* memory) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (current() == nullptr) return cuda::kInvalidContext;
  if (w.pinned.erase(reinterpret_cast<uint64_t>(memory)) == 0) return cuda::kInvalidValue;
  std::free(memory);
  return enter();
}

// ---- attributes

KVF_FAKE Code cuPointerGetAttribute(void* value, int attribute, DevicePointer address) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  size_t offset = 0;
  const Allocation* allocation = find(address, &offset);
  if (allocation == nullptr) {
    if (!is_pinned(address, 1) || attribute != cuda::kAttributeMemoryType) return cuda::kInvalidValue;
    *static_cast<unsigned*>(value) = 1;
    return cuda::kSuccess;
  }
  switch (attribute) {
    case cuda::kAttributeMemoryType:
      *static_cast<unsigned*>(value) = cuda::kMemoryTypeDevice;
      return cuda::kSuccess;
    case cuda::kAttributeIsManaged:
      *static_cast<int*>(value) = 0;
      return cuda::kSuccess;
    case cuda::kAttributeIpcCapable:
      *static_cast<int*>(value) = allocation->imported ? 0 : 1;
      return cuda::kSuccess;
    case cuda::kAttributeDeviceOrdinal:
      *static_cast<int*>(value) = allocation->device;
      return cuda::kSuccess;
    case cuda::kAttributeRangeStart:
      *static_cast<DevicePointer*>(value) = address - offset;
      return cuda::kSuccess;
    case cuda::kAttributeRangeSize:
      *static_cast<size_t*>(value) = allocation->size;
      return cuda::kSuccess;
    default:
      return cuda::kInvalidValue;
  }
}

KVF_FAKE Code cuPointerSetAttribute(const void* value, int attribute, DevicePointer address) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  Allocation* allocation = find(address);
  if (allocation == nullptr || attribute != cuda::kAttributeSyncMemops) return cuda::kInvalidValue;
  if (current() == nullptr || current()->device != allocation->device) return cuda::kInvalidContext;
  if (w.withholds_sync_memops) return cuda::kNotSupported;
  allocation->sync_memops = *static_cast<const unsigned*>(value) != 0;
  return cuda::kSuccess;
}

}  // namespace kvferry::fake_cuda
