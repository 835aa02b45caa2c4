#include <fmt/format.h>

#include <cstring>
#include <iterator>

#include "engine/memory/cuda/cuda_memory.h"

// Memory of one process in another of the same host, by CUDA IPC.

namespace kvferry::cuda {
namespace {

constexpr char kMagic[8] = {'c', 'u', 'd', 'a', 'i', 'p', 'c', '1'};

// What one process tells another. Both run on one machine, and are compared by `magic`.
struct Key {
  char magic[sizeof(kMagic)];
  IpcHandle handle;  // of the allocation
  Uuid gpu;          // numbers differ between processes, by CUDA_VISIBLE_DEVICES
  uint64_t offset;   // of the range within the allocation
};
static_assert(std::is_trivially_copyable_v<Key> && sizeof(Key) == 96);

DevicePointer pointer(const void* address) {
  return reinterpret_cast<DevicePointer>(address);
}

}  // namespace

std::string CudaMemory::share(const void* base, size_t length) {
  const std::lock_guard lock(mutex_);
  const DevicePointer at = pointer(base);
  auto range = ranges_.upper_bound(at);
  if (range == ranges_.begin()) return {};
  --range;
  // Of several mappings; or by an allocator that shares in other ways, such as CUDA's pools.
  if (at + length > range->second.end) return {};
  int capable = 0;
  if (driver_->pointer_attribute(&capable, kAttributeIpcCapable, at) != kSuccess || capable == 0) return {};
  const ContextScope scope(*driver_, range->second.device->context());
  Key key{};
  std::memcpy(key.magic, kMagic, sizeof(kMagic));
  key.offset = at - range->first;
  if (!scope.status().ok() || driver_->ipc_handle(&key.handle, range->first) != kSuccess) return {};
  if (driver_->device_uuid(&key.gpu, range->second.device->number()) != kSuccess) return {};
  return {reinterpret_cast<const char*>(&key), sizeof(key)};
}

Result<Device*> CudaMemory::device_with(const Uuid& uuid) {
  int count = 0;
  KVF_RETURN_IF_ERROR(driver_->check(driver_->device_count(&count), "cannot count the GPUs"));
  for (int number = 0; number < count; ++number) {
    Uuid here{};
    KVF_RETURN_IF_ERROR(driver_->check(driver_->device_uuid(&here, number), "cannot tell a GPU from the others"));
    if (std::memcmp(here.bytes, uuid.bytes, sizeof(here.bytes)) == 0) return device(number);
  }
  return Error{ErrorCode::unsupported, "the GPU of the owner's memory is not visible to this process"};
}

Result<CudaMemory::Import> CudaMemory::open_import(const IpcHandle& handle, Device& owner) {
  const ContextScope scope(*driver_, owner.context());
  KVF_RETURN_IF_ERROR(scope.status());
  Import import{&owner, 0};
  KVF_RETURN_IF_ERROR(driver_->check(driver_->ipc_open(&import.base, handle, kIpcLazyPeerAccess),
                                     "cannot map the GPU memory of another process"));
  return import;
}

void CudaMemory::close_import(const Import& import) {
  ranges_.erase(import.base);
  const ContextScope scope(*driver_, import.device->context(), ContextScope::Tries::twice);
  static_cast<void>(driver_->ipc_close(import.base));
}

Result<std::shared_ptr<std::byte>> CudaMemory::map(std::string_view text, uint64_t length) {
  Key key{};
  if (text.size() != sizeof(key)) return Error{ErrorCode::protocol, "malformed key of a region of GPU memory"};
  std::memcpy(&key, text.data(), sizeof(key));
  if (std::memcmp(key.magic, kMagic, sizeof(kMagic)) != 0)
    return Error{ErrorCode::unsupported, "the owner shares GPU memory in another way"};
  const std::lock_guard lock(mutex_);
  KVF_RETURN_IF_ERROR(load());
  const std::string handle(key.handle.bytes, sizeof(key.handle.bytes));
  auto found = imports_.find(handle);
  if (found == imports_.end()) {
    KVF_ASSIGN_OR_RETURN(Device * owner, device_with(key.gpu));
    KVF_ASSIGN_OR_RETURN(const Import import, open_import(key.handle, *owner));
    found = imports_.emplace(handle, import).first;
  }
  Import& import = found->second;
  // The driver, not the owner, says how much was mapped.
  const auto range = look_up(import.base);
  const uint64_t size = range ? range->end - import.base : 0;
  if (key.offset > size || length > size - key.offset) {
    const Error refused =
        range ? Error{ErrorCode::protocol, "the owner's region is larger than what it shares"} : range.error();
    if (import.users == 0) {
      close_import(import);
      imports_.erase(found);
    }
    return refused;
  }
  ++import.users;
  return std::shared_ptr<std::byte>(reinterpret_cast<std::byte*>(import.base + key.offset), [this, handle](std::byte*) {
    const std::lock_guard release(mutex_);
    const auto used = imports_.find(handle);
    if (--used->second.users > 0) return;
    close_import(used->second);
    imports_.erase(used);
  });
}

Status CudaMemory::copy(std::span<const DirectCopy> copies) {
  if (copies.empty()) return {};
  Device* device = nullptr;
  Stream stream = nullptr;
  {
    const std::lock_guard lock(mutex_);
    KVF_RETURN_IF_ERROR(load());
    KVF_ASSIGN_OR_RETURN(device, device_of({copies.front().to, nullptr, copies.front().length}));
    const ContextScope scope(*driver_, device->context());
    KVF_RETURN_IF_ERROR(scope.status());
    KVF_ASSIGN_OR_RETURN(stream, device->take_stream());
  }
  Status status;
  {
    const ContextScope scope(*driver_, device->context(), ContextScope::Tries::twice);
    status = scope.status();
    for (const DirectCopy& copy : copies) {
      if (!status.ok()) break;
      status = driver_->check(driver_->copy_any(pointer(copy.to), pointer(copy.from), copy.length, stream),
                              "cannot start a copy between GPUs");
    }
    // In any case: what did start must have landed before anybody is told of an error (I4).
    Status landed = driver_->check(driver_->stream_synchronize(stream), "a copy between GPUs failed");
    if (status.ok()) status = std::move(landed);
  }
  const std::lock_guard lock(mutex_);
  device->give_back(stream);
  return status;
}

}  // namespace kvferry::cuda
