#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

#include "engine/memory/cuda/move_spans.h"
#include "test/support/fake_cuda/world.h"

// Streams, events, and the work that is put on them.

namespace kvferry::fake_cuda {
namespace {

constexpr unsigned kInFull = 64;  // spans of a launch

// What a stream may be used for here: it exists, and its context is current.
Code usable(Stream stream) {
  if (current() == nullptr) return cuda::kInvalidContext;
  if (!world().streams.contains(stream)) return cuda::kInvalidHandle;
  return stream->context == current() ? cuda::kSuccess : cuda::kInvalidContext;
}

// Does what is on the stream until it has to wait, or `event` is reached.
void advance(Stream stream, const CUevent_st* event) {
  while (!stream->work.empty() && (event == nullptr || !event->reached)) {
    if (!stream->work.front()()) return;
    stream->work.pop_front();
  }
}

// The bytes behind an address as the device sees it: its own memory, or pinned memory of the host.
std::byte* seen_by_device(Stream stream, DevicePointer address, size_t length) {
  if (is_pinned(address, length)) return reinterpret_cast<std::byte*>(address);
  return reach(address, length, stream->context->device);
}

bool run_move(Stream stream, DevicePointer table, unsigned count, unsigned blocks, unsigned threads) {
  if (!is_pinned(table, count * sizeof(cuda::MoveSpan))) {
    stream->error = cuda::kIllegalAddress;
    return true;
  }
  const auto* spans = reinterpret_cast<const cuda::MoveSpan*>(table);
  for (unsigned block = 0; block < blocks; ++block)
    for (unsigned i = block; i < count; i += blocks) {
      cuda::MoveSpan span = spans[i];
      const std::byte* from = seen_by_device(stream, span.from, span.length);
      const std::byte* to = seen_by_device(stream, span.to, span.length);
      if (from == nullptr || to == nullptr) {
        stream->error = cuda::kIllegalAddress;
        return true;
      }
      span.from = reinterpret_cast<DevicePointer>(from);
      span.to = reinterpret_cast<DevicePointer>(to);
      // As the device does it for some of them; for the rest one thread does all, or a sanitized build takes seconds.
      const unsigned taking_part = i < kInFull ? threads : 1;
      for (unsigned thread = 0; thread < taking_part; ++thread) cuda::move_share(span, thread, taking_part);
    }
  return true;
}

// Copies between device memory, which must be the current context's, and memory of the host.
Code put_copy(Stream stream, DevicePointer device, std::byte* host, size_t bytes, bool to_host) {
  if (const Code code = usable(stream); code != cuda::kSuccess) return code;
  const int number = current()->device;
  if (reach(device, bytes, number) == nullptr) return cuda::kInvalidValue;
  stream->work.emplace_back([=] {
    std::byte* place = reach(device, bytes, number);
    if (place == nullptr)
      stream->error = cuda::kIllegalAddress;  // freed in the meantime
    else
      std::memcpy(to_host ? host : place, to_host ? place : host, bytes);
    return true;
  });
  return cuda::kSuccess;
}

}  // namespace

KVF_FAKE Code cuStreamCreate(Stream* stream, unsigned) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  if (current() == nullptr) return cuda::kInvalidContext;
  *stream = new CUstream_st{current()};
  w.streams.insert(*stream);
  return cuda::kSuccess;
}

KVF_FAKE Code cuStreamDestroy_v2(Stream stream) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = usable(stream); code != cuda::kSuccess) return code;
  w.streams.erase(stream);
  for (CuEvent event : w.events)
    if (event->stream == stream) event->stream = nullptr;
  delete stream;
  return enter();
}

KVF_FAKE Code cuStreamSynchronize(Stream stream) {
  World& w = world();
  std::unique_lock lock(w.mutex);
  if (const Code code = usable(stream); code != cuda::kSuccess) return code;
  while (true) {
    advance(stream, nullptr);
    if (stream->work.empty()) break;
    lock.unlock();
    std::this_thread::yield();
    lock.lock();
  }
  const Code code = enter();
  return code == cuda::kSuccess ? stream->error : code;
}

// Of the tests alone: what comes behind waits until the word is at least `value`.
KVF_FAKE Code cuStreamWaitValue32_v2(Stream stream, DevicePointer address, uint32_t value, unsigned) {
  const std::lock_guard lock(world().mutex);
  if (const Code code = usable(stream); code != cuda::kSuccess) return code;
  if (!is_pinned(address, sizeof(value))) return cuda::kInvalidValue;
  stream->work.emplace_back(
      [=] { return __atomic_load_n(reinterpret_cast<const uint32_t*>(address), __ATOMIC_ACQUIRE) >= value; });
  return cuda::kSuccess;
}

KVF_FAKE Code cuEventCreate(CuEvent* event, unsigned) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  if (current() == nullptr) return cuda::kInvalidContext;
  *event = new CUevent_st{current()};
  w.events.insert(*event);
  return cuda::kSuccess;
}

KVF_FAKE Code cuEventDestroy_v2(CuEvent event) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (w.events.erase(event) == 0) return cuda::kInvalidHandle;
  // Work that would have marked it may still stand on a stream, which knows it by its address: kept, and forgotten.
  event->stream = nullptr;
  static std::vector<CuEvent>& destroyed = *new std::vector<CuEvent>;
  destroyed.push_back(event);
  return enter();
}

KVF_FAKE Code cuEventRecord(CuEvent event, Stream stream) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  if (!w.events.contains(event)) return cuda::kInvalidHandle;
  if (const Code code = usable(stream); code != cuda::kSuccess) return code;
  if (event->context != stream->context) return cuda::kInvalidContext;
  event->stream = stream;
  event->reached = false;
  event->queries = 0;
  stream->work.emplace_back([event] { return event->reached = true; });
  return cuda::kSuccess;
}

KVF_FAKE Code cuEventQuery(CuEvent event) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  if (current() == nullptr) return cuda::kInvalidContext;
  if (!w.events.contains(event)) return cuda::kInvalidHandle;
  if (event->stream == nullptr) return event->reached ? cuda::kSuccess : cuda::kNotReady;
  if (!event->reached && ++event->queries < 2) return cuda::kNotReady;
  advance(event->stream, event);
  if (event->stream->error != cuda::kSuccess) return event->stream->error;
  return event->reached ? cuda::kSuccess : cuda::kNotReady;
}

KVF_FAKE Code cuMemcpyDtoHAsync_v2(void* to, DevicePointer from, size_t bytes, Stream stream) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  ++w.copies;
  return put_copy(stream, from, static_cast<std::byte*>(to), bytes, true);
}

KVF_FAKE Code cuMemcpyHtoDAsync_v2(DevicePointer to, const void* from, size_t bytes, Stream stream) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  ++w.copies;
  return put_copy(stream, to, static_cast<std::byte*>(const_cast<void*>(from)), bytes, false);
}

KVF_FAKE Code cuMemcpyAsync(DevicePointer to, DevicePointer from, size_t bytes, Stream stream) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  if (const Code code = usable(stream); code != cuda::kSuccess) return code;
  const Allocation* there = find(to);
  const Allocation* here = find(from);
  if (there == nullptr || here == nullptr) return cuda::kInvalidValue;
  if (there->device != current()->device && here->device != current()->device) return cuda::kInvalidContext;
  if (reach(to, bytes, there->device) == nullptr || reach(from, bytes, here->device) == nullptr)
    return cuda::kInvalidValue;
  stream->work.emplace_back([=, to_device = there->device, from_device = here->device] {
    std::byte* const place = reach(to, bytes, to_device);
    const std::byte* const source = reach(from, bytes, from_device);
    if (place == nullptr || source == nullptr)
      stream->error = cuda::kIllegalAddress;
    else
      std::memmove(place, source, bytes);
    return true;
  });
  return cuda::kSuccess;
}

KVF_FAKE Code cuMemcpyBatchAsync_v2(DevicePointer* to, DevicePointer* from, size_t* bytes, size_t count,
                                    cuda::CopyAttributes* attributes, size_t* attribute_starts, size_t attribute_count,
                                    Stream stream) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  ++w.batches;
  if (count == 0 || attribute_count != 1 || attribute_starts[0] != 0) return cuda::kInvalidValue;
  if (attributes->access_order != cuda::kAccessOrderStream) return cuda::kInvalidValue;
  for (size_t i = 0; i < count; ++i) {
    const bool to_host = find(to[i]) == nullptr;
    const DevicePointer host = to_host ? to[i] : from[i];
    if (!is_pinned(host, bytes[i])) return cuda::kInvalidValue;
    const Code code =
        put_copy(stream, to_host ? from[i] : to[i], reinterpret_cast<std::byte*>(host), bytes[i], to_host);
    if (code != cuda::kSuccess) return code;
  }
  return cuda::kSuccess;
}

KVF_FAKE Code cuLaunchKernel(cuda::Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                             unsigned block_x, unsigned block_y, unsigned block_z, unsigned, Stream stream,
                             void** parameters, void**) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  if (!w.modules.contains(reinterpret_cast<Module>(function))) return cuda::kInvalidHandle;
  if (const Code code = usable(stream); code != cuda::kSuccess) return code;
  if (reinterpret_cast<Module>(function)->context != current()) return cuda::kInvalidContext;
  if (grid_x == 0 || block_x == 0 || block_x > 1024 || grid_y * grid_z * block_y * block_z != 1)
    return cuda::kInvalidValue;
  ++w.launches;
  const DevicePointer table = *static_cast<DevicePointer*>(parameters[0]);
  const unsigned count = *static_cast<unsigned*>(parameters[1]);
  stream->work.emplace_back([=] { return run_move(stream, table, count, grid_x, block_x); });
  return cuda::kSuccess;
}

}  // namespace kvferry::fake_cuda
