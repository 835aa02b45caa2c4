#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "engine/memory/cuda/cuda_memory.h"

// Memory that NICs read and write by themselves: GPUDirect RDMA.

namespace kvferry::cuda {

Result<Device*> CudaMemory::exposed_device(DevicePointer at) {
  KVF_ASSIGN_OR_RETURN(Device * owner, device_of({reinterpret_cast<std::byte*>(at), nullptr, 0}));
  KVF_ASSIGN_OR_RETURN(const Device::Rdma* rdma, owner->rdma());
  KVF_RETURN_IF_ERROR(rdma->allowed);
  return owner;
}

// Of whole pages, as the driver wants it. One that it does not give is no error: libraries have other ways to ask.
UniqueFd CudaMemory::open_dmabuf(const Device& device, DevicePointer at, uint64_t length, uint64_t& offset) const {
  const auto page = static_cast<DevicePointer>(::sysconf(_SC_PAGESIZE));
  const DevicePointer start = at / page * page;
  const DevicePointer end = (at + length + page - 1) / page * page;
  int descriptor = -1;
  const ContextScope scope(*driver_, device.context());
  if (!scope.status().ok() || driver_->range_handle(&descriptor, start, end - start, kRangeDmabuf, 0) != kSuccess)
    return {};
  offset = at - start;
  return UniqueFd(descriptor);
}

Status CudaMemory::expose(void* base, uint64_t length, const std::function<Status(const FabricRange&)>& use) {
  FabricRange range{base, length, MemoryKind::cuda};
  const auto at = reinterpret_cast<DevicePointer>(base);
  Context context = nullptr;
  UniqueFd dmabuf;
  {
    const std::lock_guard lock(mutex_);
    KVF_RETURN_IF_ERROR(load());
    KVF_ASSIGN_OR_RETURN(Device * owner, exposed_device(at));
    KVF_ASSIGN_OR_RETURN(const Device::Rdma* rdma, owner->rdma());
    if (rdma->gives_dmabuf) dmabuf = open_dmabuf(*owner, at, length, range.dmabuf_offset);
    range.device = owner->number();
    context = owner->context();
  }
  range.dmabuf = dmabuf.get();
  // Without the lock: what `use` calls may ask for this kind's memory, and take its time.
  const ContextScope scope(*driver_, context);
  KVF_RETURN_IF_ERROR(scope.status());
  return use(range);
}

Status CudaMemory::settle_writes(std::span<const void* const> addresses) {
  const std::lock_guard lock(mutex_);
  KVF_RETURN_IF_ERROR(load());
  std::vector<Device*> flushed;
  for (const void* address : addresses) {
    KVF_ASSIGN_OR_RETURN(Device * owner, exposed_device(reinterpret_cast<DevicePointer>(address)));
    KVF_ASSIGN_OR_RETURN(const Device::Rdma* rdma, owner->rdma());
    if (!rdma->needs_flush || std::find(flushed.begin(), flushed.end(), owner) != flushed.end()) continue;
    const ContextScope scope(*driver_, owner->context());
    KVF_RETURN_IF_ERROR(scope.status());
    KVF_RETURN_IF_ERROR(driver_->check(driver_->flush_writes(kFlushCurrentContext, kFlushToAll),
                                       "cannot make visible what a NIC has written to the GPU"));
    flushed.push_back(owner);
  }
  return {};
}

// Unknown where the driver does not say.
Place CudaMemory::place_of(const void* address, const Topology& topology) {
  const std::lock_guard lock(mutex_);
  if (!load().ok()) return {};
  const auto owner = device_of({static_cast<std::byte*>(const_cast<void*>(address)), nullptr, 0});
  if (!owner) return {};
  int domain = 0, bus = 0, device = 0;
  const std::pair<int, int*> asked[] = {
      {kDevicePciDomain, &domain}, {kDevicePciBus, &bus}, {kDevicePciDevice, &device}};
  for (const auto& [attribute, value] : asked)
    if (driver_->device_attribute(value, attribute, (*owner)->number()) != kSuccess) return {};
  return topology.place_of_pci(fmt::format("{:04x}:{:02x}:{:02x}.0", domain, bus, device));
}

}  // namespace kvferry::cuda
