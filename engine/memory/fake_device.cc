#include "engine/memory/fake_device.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

namespace kvferry {
namespace {

Error not_device_memory() {
  return Error{ErrorCode::invalid_argument, "range is not memory of the fake device"};
}

}  // namespace

FakeDevice::~FakeDevice() {
  for (const auto& [address, block] : blocks_) {
    ::munmap(const_cast<std::byte*>(address), block.length);
    ::munmap(block.backing, block.length);
  }
}

Result<std::byte*> FakeDevice::allocate(size_t length) {
  void* address = ::mmap(nullptr, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) return errno_error("cannot map fake device memory");
  void* backing = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (backing == MAP_FAILED) {
    Error error = errno_error("cannot map the backing of fake device memory");
    ::munmap(address, length);
    return error;
  }
  const std::lock_guard lock(mutex_);
  blocks_.emplace(static_cast<std::byte*>(address), Block{length, static_cast<std::byte*>(backing)});
  return static_cast<std::byte*>(address);
}

std::byte* FakeDevice::backing_of(const std::byte* device, size_t length) const {
  auto after = blocks_.upper_bound(device);
  if (after == blocks_.begin()) return nullptr;
  const auto& [address, block] = *std::prev(after);
  const auto offset = static_cast<size_t>(device - address);
  if (offset >= block.length || length > block.length - offset) return nullptr;
  return block.backing + offset;
}

Status FakeDevice::store(std::byte* device, const void* from, size_t length) {
  const std::lock_guard lock(mutex_);
  std::byte* backing = backing_of(device, length);
  if (backing == nullptr) return not_device_memory();
  std::memcpy(backing, from, length);
  return {};
}

Status FakeDevice::load(void* into, const std::byte* device, size_t length) const {
  const std::lock_guard lock(mutex_);
  const std::byte* backing = backing_of(device, length);
  if (backing == nullptr) return not_device_memory();
  std::memcpy(into, backing, length);
  return {};
}

Status FakeDevice::check(const void* base, size_t length) {
  const std::lock_guard lock(mutex_);
  if (length == 0 || backing_of(static_cast<const std::byte*>(base), length) == nullptr) return not_device_memory();
  return {};
}

std::byte* FakeDevice::allocate_staging(size_t length) {
  return static_cast<std::byte*>(std::malloc(length));
}

void FakeDevice::free_staging(std::byte* staging, size_t) {
  std::free(staging);
}

Result<CopyId> FakeDevice::start_copy(CopyDirection direction, std::span<const CopySpan> spans) {
  const std::lock_guard lock(mutex_);
  for (const CopySpan& span : spans)
    if (backing_of(span.device, span.length) == nullptr) return not_device_memory();
  const CopyId id = next_copy_++;
  copies_.emplace(id, Copy{direction, {spans.begin(), spans.end()}});
  return id;
}

Result<bool> FakeDevice::copy_done(CopyId id) {
  const std::lock_guard lock(mutex_);
  const auto found = copies_.find(id);
  if (found == copies_.end()) return Error{ErrorCode::not_found, "no such copy on the fake device"};
  Copy& copy = found->second;
  if (++copy.polls < 2) return false;
  for (const CopySpan& span : copy.spans) {
    std::byte* backing = backing_of(span.device, span.length);
    if (copy.direction == CopyDirection::to_host)
      std::memcpy(span.host, backing, span.length);
    else
      std::memcpy(backing, span.host, span.length);
  }
  copies_.erase(found);
  return true;
}

EventId FakeDevice::create_event() {
  const std::lock_guard lock(mutex_);
  events_.emplace(next_event_, false);
  return next_event_++;
}

void FakeDevice::signal(EventId event) {
  const std::lock_guard lock(mutex_);
  if (const auto found = events_.find(event); found != events_.end()) found->second = true;
}

void FakeDevice::destroy_event(EventId event) {
  const std::lock_guard lock(mutex_);
  events_.erase(event);
}

Result<bool> FakeDevice::event_done(EventId event) {
  const std::lock_guard lock(mutex_);
  const auto found = events_.find(event);
  if (found == events_.end()) return Error{ErrorCode::not_found, "no such event on the fake device"};
  return found->second;
}

}  // namespace kvferry
