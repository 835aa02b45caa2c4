#include "engine/memory/cuda/cuda_memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace kvferry::cuda {
namespace {

// Spans that are worth bringing together: below this many, and above this size, each is a copy of its own.
constexpr size_t kFewSpans = 4;
constexpr size_t kLargeSpan = size_t{64} << 10;
// Ranges that are remembered; more means that the application registers far more allocations than a KV cache has.
constexpr size_t kMaxRanges = 65536;

DevicePointer pointer(const void* address) {
  return reinterpret_cast<DevicePointer>(address);
}

}  // namespace

CudaMemory::~CudaMemory() {
  // I4: whoever asked for a copy has waited for it; what is left here was given up with its engine.
  for (auto& [id, copy] : copies_)
    for (Part& part : copy) settle(part);
  if (pool_ && !devices_.empty()) {
    const ContextScope scope(*driver_, devices_.begin()->second->context(), ContextScope::Tries::twice);
    pool_->clear();
  }
}

// ---- registration

Status CudaMemory::load() {
  if (driver_) return {};
  KVF_ASSIGN_OR_RETURN(std::shared_ptr<const Driver> driver, Driver::load(options_.library));
  int count = 0;
  KVF_RETURN_IF_ERROR(driver->check(driver->device_count(&count), "cannot count the GPUs"));
  if (count == 0) return Error{ErrorCode::unsupported, "the CUDA driver sees no GPU"};
  pool_ = std::make_unique<PinnedPool>(driver);
  driver_ = std::move(driver);
  return {};
}

Result<Device*> CudaMemory::device(DeviceNumber number) {
  const auto found = devices_.find(number);
  if (found != devices_.end()) return found->second.get();
  KVF_ASSIGN_OR_RETURN(std::unique_ptr<Device> opened, Device::open(driver_, number, options_.gather, options_.image));
  return devices_.emplace(number, std::move(opened)).first->second.get();
}

// Asks the driver where the allocation around an address lies, and on which device.
Result<CudaMemory::Range> CudaMemory::look_up(DevicePointer address) {
  const Error foreign{ErrorCode::invalid_argument, fmt::format("the memory at 0x{:x} is not a GPU's", address)};
  unsigned type = 0;
  const Code known = driver_->pointer_attribute(&type, kAttributeMemoryType, address);
  if (known == kInvalidValue) return foreign;
  KVF_RETURN_IF_ERROR(driver_->check(known, "cannot look up memory"));
  if (type != kMemoryTypeDevice) return foreign;
  int managed = 0;
  KVF_RETURN_IF_ERROR(
      driver_->check(driver_->pointer_attribute(&managed, kAttributeIsManaged, address), "cannot look up memory"));
  if (managed != 0)
    return Error{ErrorCode::unsupported, "managed memory moves between host and GPU and cannot be registered"};
  int number = 0;
  DevicePointer start = 0;
  size_t size = 0;
  KVF_RETURN_IF_ERROR(driver_->check(driver_->pointer_attribute(&number, kAttributeDeviceOrdinal, address),
                                     "cannot find the GPU of the memory"));
  KVF_RETURN_IF_ERROR(driver_->check(driver_->pointer_attribute(&start, kAttributeRangeStart, address),
                                     "cannot find the allocation of the memory"));
  KVF_RETURN_IF_ERROR(driver_->check(driver_->pointer_attribute(&size, kAttributeRangeSize, address),
                                     "cannot find the allocation of the memory"));
  KVF_ASSIGN_OR_RETURN(Device * owner, device(number));
  const Range range{start + size, owner};
  // What lay here before was freed: its address is another allocation's now.
  auto stale = ranges_.lower_bound(start);
  if (stale != ranges_.begin() && std::prev(stale)->second.end > start) --stale;
  while (stale != ranges_.end() && stale->first < range.end) stale = ranges_.erase(stale);
  if (ranges_.size() >= kMaxRanges) ranges_.clear();
  ranges_.emplace(start, range);
  return range;
}

// From here on the driver ends each synchronous operation on the memory before it returns. Without it a copy between
// two places of one GPU may still run when the application's call has returned, and a peer would read what was there
// before.
Status CudaMemory::prepare(DevicePointer address, Device& owner) {
  const ContextScope scope(*driver_, owner.context());
  KVF_RETURN_IF_ERROR(scope.status());
  const unsigned on = 1;
  const Code set = driver_->set_pointer_attribute(&on, kAttributeSyncMemops, address);
  if (set == kNotSupported) {
    ++unsynchronised_;
    return {};
  }
  return driver_->check(set, "cannot set SYNC_MEMOPS on the memory");
}

Status CudaMemory::check(const void* base, size_t length) {
  if (base == nullptr || length == 0) return Error{ErrorCode::invalid_argument, "memory to register must not be empty"};
  const std::lock_guard lock(mutex_);
  KVF_RETURN_IF_ERROR(load());
  const DevicePointer end = pointer(base) + length;
  if (end < pointer(base)) return Error{ErrorCode::invalid_argument, "memory to register wraps around"};
  const Device* first = nullptr;
  // One allocation as a rule; several where the address range was mapped piece by piece.
  for (DevicePointer at = pointer(base); at < end;) {
    KVF_ASSIGN_OR_RETURN(const Range range, look_up(at));
    if (first != nullptr && range.device != first)
      return Error{ErrorCode::invalid_argument, "memory to register lies on several GPUs"};
    first = range.device;
    KVF_RETURN_IF_ERROR(prepare(at, *range.device));
    at = range.end;
  }
  return {};
}

// ---- staging

std::byte* CudaMemory::allocate_staging(size_t length) {
  const std::lock_guard lock(mutex_);
  if (devices_.empty()) return nullptr;  // nothing is registered, so nothing can be copied
  const ContextScope scope(*driver_, devices_.begin()->second->context());
  return scope.status().ok() ? pool_->take(length) : nullptr;
}

void CudaMemory::free_staging(std::byte* staging, size_t) {
  const std::lock_guard lock(mutex_);
  const ContextScope scope(*driver_, devices_.begin()->second->context(), ContextScope::Tries::twice);
  pool_->give(staging);
}

// ---- copies

Result<Device*> CudaMemory::device_of(const CopySpan& span) {
  const DevicePointer at = pointer(span.device);
  auto after = ranges_.upper_bound(at);
  if (after != ranges_.begin()) {
    const Range& range = std::prev(after)->second;
    if (at < range.end) return range.device;
  }
  KVF_ASSIGN_OR_RETURN(const Range range, look_up(at));
  return range.device;
}

Result<CopyId> CudaMemory::start_copy(CopyDirection direction, std::span<const CopySpan> spans) {
  const std::lock_guard lock(mutex_);
  KVF_RETURN_IF_ERROR(load());
  Copy copy;
  Status status;
  for (size_t first = 0; first < spans.size() && status.ok();) {
    auto owner = device_of(spans[first]);
    size_t end = first + 1;
    while (owner && end < spans.size()) {
      const auto next = device_of(spans[end]);
      if (!next || *next != *owner) break;
      ++end;
    }
    status = owner ? start_on(**owner, direction, spans.subspan(first, end - first), copy)
                   : Status(std::move(owner).error());
    first = end;
  }
  if (!status.ok()) {
    for (Part& part : copy) settle(part);
    return std::move(status).error();
  }
  const CopyId id = next_copy_++;
  copies_.emplace(id, std::move(copy));
  return id;
}

Status CudaMemory::start_on(Device& on, CopyDirection direction, std::span<const CopySpan> spans, Copy& copy) {
  const ContextScope scope(*driver_, on.context());
  KVF_RETURN_IF_ERROR(scope.status());
  Part part;
  part.device = &on;
  KVF_ASSIGN_OR_RETURN(part.event, on.take_event());
  part.stream = on.next_stream(direction);
  // In any case: an Error may have left something on the stream, which must be quiet before it is reported.
  copy.push_back(part);
  return enqueue(copy.back(), direction, spans);
}

bool CudaMemory::worth_a_table(std::span<const CopySpan> spans) const {
  if (spans.size() < kFewSpans) return false;
  size_t bytes = 0;
  for (const CopySpan& span : spans) bytes += span.length;
  if (bytes / spans.size() > kLargeSpan) return false;
  return std::all_of(spans.begin(), spans.end(),
                     [this](const CopySpan& span) { return pool_->holds(span.host, span.length); });
}

Status CudaMemory::enqueue(Part& part, CopyDirection direction, std::span<const CopySpan> spans) {
  const Device& on = *part.device;
  const Gather gather = on.gather() != Gather::single && worth_a_table(spans) ? on.gather() : Gather::single;
  if (gather == Gather::kernel) part.table = pool_->take(spans.size() * sizeof(MoveSpan));
  if (part.table != nullptr)
    KVF_RETURN_IF_ERROR(on.launch_move(direction, spans, reinterpret_cast<MoveSpan*>(part.table), part.stream));
  else if (gather == Gather::batch)
    KVF_RETURN_IF_ERROR(on.copy_batch(direction, spans, part.stream));
  else
    KVF_RETURN_IF_ERROR(on.copy_each(direction, spans, part.stream));
  return driver_->check(driver_->event_record(part.event, part.stream), "cannot record the end of a copy");
}

// Waits until nothing of the part runs any more, and gives back what it held. A stream that cannot be synchronised is
// that of a device that has failed, on which nothing runs.
void CudaMemory::settle(Part& part) {
  const ContextScope scope(*driver_, part.device->context(), ContextScope::Tries::twice);
  static_cast<void>(driver_->stream_synchronize(part.stream));
  if (part.event != nullptr) driver_->event_destroy(std::exchange(part.event, nullptr));
  if (part.table != nullptr) pool_->give(std::exchange(part.table, nullptr));
}

Result<bool> CudaMemory::part_done(Part& part) {
  if (part.event == nullptr) return true;
  const ContextScope scope(*driver_, part.device->context());
  KVF_RETURN_IF_ERROR(scope.status());
  const Code code = driver_->event_query(part.event);
  if (code == kNotReady) return false;
  KVF_RETURN_IF_ERROR(driver_->check(code, "a copy failed"));
  part.device->give_back(std::exchange(part.event, nullptr));
  if (part.table != nullptr) pool_->give(std::exchange(part.table, nullptr));
  return true;
}

Result<bool> CudaMemory::copy_done(CopyId id) {
  const std::lock_guard lock(mutex_);
  const auto found = copies_.find(id);
  if (found == copies_.end()) return Error{ErrorCode::not_found, "no such copy of GPU memory"};
  for (Part& part : found->second) {
    const auto done = part_done(part);
    if (done && !*done) return false;
    if (done) continue;
    for (Part& rest : found->second) settle(rest);
    copies_.erase(found);
    return done.error();
  }
  copies_.erase(found);
  return true;
}

// ---- events, and what there is to say

Result<bool> CudaMemory::event_done(EventId event) {
  const std::lock_guard lock(mutex_);
  if (devices_.empty()) return Error{ErrorCode::invalid_argument, "an event without any registered GPU memory"};
  const ContextScope scope(*driver_, devices_.begin()->second->context());
  KVF_RETURN_IF_ERROR(scope.status());
  const Code code = driver_->event_query(reinterpret_cast<CuEvent>(event));
  if (code == kNotReady) return false;
  KVF_RETURN_IF_ERROR(driver_->check(code, "a CUDA event cannot be waited for"));
  return true;
}

std::string CudaMemory::describe() const {
  const std::lock_guard lock(mutex_);
  if (!driver_) {
    const Status there = Driver::look(options_.library);
    return there.ok() ? "its driver is here, and not used yet" : "not viable: " + there.error().to_string();
  }
  int version = 0;
  static_cast<void>(driver_->driver_version(&version));
  std::string out = fmt::format("driver of CUDA {}.{}", version / 1000, version % 1000 / 10);
  for (const auto& [number, opened] : devices_) {
    out += fmt::format("; GPU {}: small blocks by {}", number, to_string(opened->gather()));
    if (!opened->why_not().empty()) out += fmt::format(" ({})", opened->why_not());
  }
  if (unsynchronised_ > 0) out += fmt::format("; {} ranges whose allocator has no SYNC_MEMOPS", unsynchronised_);
  return out;
}

}  // namespace kvferry::cuda
