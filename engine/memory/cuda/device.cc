#include "engine/memory/cuda/device.h"

#include <algorithm>
#include <utility>

namespace kvferry::cuda {
namespace {

DevicePointer pointer(const std::byte* address) {
  return reinterpret_cast<DevicePointer>(address);
}

}  // namespace

std::string_view to_string(Gather gather) {
  switch (gather) {
    case Gather::automatic:
      return "auto";
    case Gather::kernel:
      return "kernel";
    case Gather::batch:
      return "batch";
    case Gather::single:
      return "single";
  }
  return "unknown";
}

Result<Gather> parse_gather(std::string_view text) {
  for (const Gather gather : {Gather::automatic, Gather::kernel, Gather::batch, Gather::single})
    if (text == to_string(gather)) return gather;
  return Error{ErrorCode::invalid_argument, "\"" + std::string(text) + "\" is none of auto, kernel, batch, single"};
}

Result<std::unique_ptr<Device>> Device::open(std::shared_ptr<const Driver> driver, DeviceNumber number, Gather wanted,
                                             std::span<const unsigned char> image) {
  std::unique_ptr<Device> device(new Device(std::move(driver), number));
  const Driver& d = *device->driver_;
  KVF_RETURN_IF_ERROR(d.check(d.primary_retain(&device->context_, number), "cannot use the GPU's primary context"));
  const ContextScope scope(d, device->context_);
  KVF_RETURN_IF_ERROR(scope.status());
  KVF_RETURN_IF_ERROR(device->make_streams());
  device->choose(wanted, image);
  return device;
}

Device::~Device() {
  if (context_ == nullptr) return;
  {
    const ContextScope scope(*driver_, context_, ContextScope::Tries::twice);
    if (scope.status().ok()) {
      for (CuEvent event : idle_events_) driver_->event_destroy(event);
      for (const auto& streams : streams_)
        for (Stream stream : streams)
          if (stream != nullptr) driver_->stream_destroy(stream);
      for (Stream stream : idle_streams_) driver_->stream_destroy(stream);
      if (module_ != nullptr) driver_->module_unload(module_);
    }
  }
  driver_->primary_release(number_);
}

Status Device::make_streams() {
  for (auto& streams : streams_)
    for (Stream& stream : streams)
      KVF_RETURN_IF_ERROR(
          driver_->check(driver_->stream_create(&stream, kStreamNonBlocking), "cannot make a stream for copies"));
  return {};
}

Status Device::load_kernel(std::span<const unsigned char> image) {
  if (image.empty()) return Error{ErrorCode::unsupported, "built without nvcc: there is no kernel"};
  KVF_RETURN_IF_ERROR(driver_->check(driver_->module_load(&module_, image.data()), "the driver refuses the kernel"));
  return driver_->check(driver_->module_function(&move_, module_, kMoveFunction), "the kernel lacks its function");
}

void Device::choose(Gather wanted, std::span<const unsigned char> image) {
  if (wanted == Gather::automatic || wanted == Gather::kernel) {
    const Status loaded = load_kernel(image);
    if (loaded.ok()) {
      gather_ = Gather::kernel;
      return;
    }
    why_not_ = loaded.error().to_string();
  }
  if (wanted != Gather::single) {
    if (driver_->copy_batch != nullptr) {
      gather_ = Gather::batch;
      return;
    }
    why_not_ += why_not_.empty() ? "" : "; ";
    why_not_ += "the driver has no cuMemcpyBatchAsync_v2";
  }
  gather_ = Gather::single;
}

Result<const Device::Rdma*> Device::rdma() {
  if (rdma_) return &*rdma_;
  int direct = 0, options = 0, ordering = 0, dmabuf = 0;
  const std::pair<int, int*> asked[] = {{kDeviceDirectRdma, &direct},
                                        {kDeviceFlushOptions, &options},
                                        {kDeviceWritesOrdering, &ordering},
                                        {kDeviceDmabuf, &dmabuf}};
  for (const auto& [attribute, value] : asked) {
    const Code code = driver_->device_attribute(value, attribute, number_);
    if (code == kInvalidValue) continue;  // a driver from before the attribute: it has none of it
    KVF_RETURN_IF_ERROR(driver_->check(code, "cannot ask what NICs may do with the GPU's memory"));
  }
  Rdma found;
  found.gives_dmabuf = dmabuf != 0 && driver_->range_handle != nullptr;
  found.needs_flush = ordering < kOrderedForAll;
  const bool can_flush = (options & kFlushByHost) != 0 && driver_->flush_writes != nullptr;
  if (direct == 0 && !found.gives_dmabuf)
    found.allowed = Error{ErrorCode::unsupported, "the GPU has no GPUDirect RDMA"};
  else if (found.needs_flush && !can_flush)
    found.allowed = Error{ErrorCode::unsupported, "the GPU does not order what NICs write, and cannot be told to"};
  rdma_ = std::move(found);
  return &*rdma_;
}

Stream Device::next_stream(CopyDirection direction) {
  const auto way = static_cast<size_t>(direction);
  return streams_[way][next_[way]++ % kStreams];
}

Result<CuEvent> Device::take_event() {
  if (!idle_events_.empty()) {
    CuEvent event = idle_events_.back();
    idle_events_.pop_back();
    return event;
  }
  CuEvent event = nullptr;
  KVF_RETURN_IF_ERROR(
      driver_->check(driver_->event_create(&event, kEventDisableTiming), "cannot make an event for a copy"));
  return event;
}

Result<Stream> Device::take_stream() {
  if (!idle_streams_.empty()) {
    Stream stream = idle_streams_.back();
    idle_streams_.pop_back();
    return stream;
  }
  Stream stream = nullptr;
  KVF_RETURN_IF_ERROR(
      driver_->check(driver_->stream_create(&stream, kStreamNonBlocking), "cannot make a stream for copies"));
  return stream;
}

Status Device::copy_each(CopyDirection direction, std::span<const CopySpan> spans, Stream stream) const {
  for (const CopySpan& span : spans) {
    const Code code = direction == CopyDirection::to_host
                          ? driver_->copy_to_host(span.host, pointer(span.device), span.length, stream)
                          : driver_->copy_to_device(pointer(span.device), span.host, span.length, stream);
    KVF_RETURN_IF_ERROR(driver_->check(code, "cannot start a copy"));
  }
  return {};
}

Status Device::copy_batch(CopyDirection direction, std::span<const CopySpan> spans, Stream stream) const {
  std::vector<DevicePointer> to(spans.size());
  std::vector<DevicePointer> from(spans.size());
  std::vector<size_t> lengths(spans.size());
  for (size_t i = 0; i < spans.size(); ++i) {
    const bool out = direction == CopyDirection::to_host;
    to[i] = pointer(out ? spans[i].host : spans[i].device);
    from[i] = pointer(out ? spans[i].device : spans[i].host);
    lengths[i] = spans[i].length;
  }
  CopyAttributes attributes{kAccessOrderStream, {}, {}, 0};
  size_t start = 0;
  return driver_->check(
      driver_->copy_batch(to.data(), from.data(), lengths.data(), spans.size(), &attributes, &start, 1, stream),
      "cannot start a batch of copies");
}

Status Device::launch_move(CopyDirection direction, std::span<const CopySpan> spans, MoveSpan* table,
                           Stream stream) const {
  for (size_t i = 0; i < spans.size(); ++i) {
    const bool out = direction == CopyDirection::to_host;
    table[i] = {pointer(out ? spans[i].device : spans[i].host), pointer(out ? spans[i].host : spans[i].device),
                spans[i].length};
  }
  auto place = reinterpret_cast<DevicePointer>(table);
  auto count = static_cast<unsigned>(spans.size());
  void* parameters[] = {&place, &count};
  return driver_->check(
      driver_->launch(move_, std::min(count, kMoveBlocks), 1, 1, kMoveThreads, 1, 1, 0, stream, parameters, nullptr),
      "cannot launch the kernel that moves blocks");
}

}  // namespace kvferry::cuda
