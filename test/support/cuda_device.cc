#include "test/support/cuda_device.h"

#include <dlfcn.h>

#include <iterator>

#include "common/check.h"
#include "common/config.h"

namespace kvferry::test {
namespace {

using cuda::Code;
using cuda::Context;
using cuda::ContextScope;
using cuda::CuEvent;
using cuda::DevicePointer;
using cuda::Stream;

template <class... Arguments>
void call(const char* name, Arguments... arguments) {
  const auto function = driver_symbol<Code (*)(Arguments...)>(name);
  KVF_CHECK(function != nullptr);
  KVF_CHECK(function(arguments...) == cuda::kSuccess);
}

DevicePointer pointer(const void* address) {
  return reinterpret_cast<DevicePointer>(address);
}

}  // namespace

std::string cuda_driver() {
  return Environment::of_process().get("KVFERRY_CUDA_DRIVER").value_or(KVF_FAKE_CUDA);
}

void* driver_symbol(const char* name) {
  void* library = ::dlopen(cuda_driver().c_str(), RTLD_NOW | RTLD_LOCAL);
  return library != nullptr ? ::dlsym(library, name) : nullptr;
}

const fake_cuda::Control* fake_control() {
  const auto get = driver_symbol<fake_cuda::GetControl>(fake_cuda::kGetControl);
  return get != nullptr ? get() : nullptr;
}

Context current_context() {
  Context context = nullptr;
  call<Context*>("cuCtxGetCurrent", &context);
  return context;
}

std::span<const unsigned char> test_kernel() {
  static constexpr unsigned char kStandIn[] = {0x50, 0xed, 0x55, 0xba};
  const auto compiled = cuda::Options::compiled_kernel();
  return compiled.empty() && fake_control() != nullptr ? std::span<const unsigned char>(kStandIn) : compiled;
}

CudaDevice::CudaDevice(cuda::Gather gather) {
  auto driver = cuda::Driver::load(cuda_driver());
  KVF_CHECK(driver.ok());
  driver_ = *driver;
  ops_ = std::make_shared<cuda::CudaMemory>(cuda::Options{cuda_driver(), gather, test_kernel()});
  int count = 0;
  KVF_CHECK(driver_->device_count(&count) == cuda::kSuccess && count > 0);
  contexts_.resize(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i)
    KVF_CHECK(driver_->primary_retain(&contexts_[static_cast<size_t>(i)], i) == cuda::kSuccess);
}

CudaDevice::~CudaDevice() {
  for (auto& [event, gate] : gates_) {
    __atomic_store_n(gate.word, 1u, __ATOMIC_RELEASE);
    const ContextScope scope(*driver_, contexts_[0]);
    driver_->stream_synchronize(gate.stream);
    if (!gate.destroyed) driver_->event_destroy(reinterpret_cast<CuEvent>(event));
    driver_->stream_destroy(gate.stream);
    driver_->host_free(gate.word);
  }
  for (const auto& [address, gpu] : memory_) {
    const ContextScope scope(*driver_, contexts_[gpu]);
    call<DevicePointer>("cuMemFree_v2", pointer(address));
  }
  for (size_t i = 0; i < contexts_.size(); ++i) driver_->primary_release(static_cast<int>(i));
}

std::byte* CudaDevice::allocate(size_t length) {
  const std::lock_guard lock(mutex_);
  const size_t gpu = next_++ % contexts_.size();
  const ContextScope scope(*driver_, contexts_[gpu]);
  DevicePointer address = 0;
  call<DevicePointer*, size_t>("cuMemAlloc_v2", &address, length);
  auto* memory = reinterpret_cast<std::byte*>(address);
  memory_.emplace(memory, gpu);
  return memory;
}

Context CudaDevice::context_of(const std::byte* address) const {
  const std::lock_guard lock(mutex_);
  const auto after = memory_.upper_bound(address);
  KVF_CHECK(after != memory_.begin());
  return contexts_[std::prev(after)->second];
}

void CudaDevice::store(std::byte* device, const void* from, size_t length) {
  const ContextScope scope(*driver_, context_of(device));
  call<DevicePointer, const void*, size_t>("cuMemcpyHtoD_v2", pointer(device), from, length);
}

void CudaDevice::load(void* into, const std::byte* device, size_t length) const {
  const ContextScope scope(*driver_, context_of(device));
  call<void*, DevicePointer, size_t>("cuMemcpyDtoH_v2", into, pointer(device), length);
}

// A stream that waits for a word of pinned memory stands for the application's kernels.
EventId CudaDevice::create_event() {
  const std::lock_guard lock(mutex_);
  const ContextScope scope(*driver_, contexts_[0]);
  Gate gate{};
  void* word = nullptr;
  CuEvent event = nullptr;
  KVF_CHECK(driver_->host_alloc(&word, sizeof(uint32_t), cuda::kHostPortable | cuda::kHostMapped) == cuda::kSuccess);
  gate.word = static_cast<uint32_t*>(word);
  *gate.word = 0;
  KVF_CHECK(driver_->stream_create(&gate.stream, cuda::kStreamNonBlocking) == cuda::kSuccess);
  call<Stream, DevicePointer, uint32_t, unsigned>("cuStreamWaitValue32_v2", gate.stream, pointer(word), 1, 0);
  KVF_CHECK(driver_->event_create(&event, cuda::kEventDisableTiming) == cuda::kSuccess);
  KVF_CHECK(driver_->event_record(event, gate.stream) == cuda::kSuccess);
  const auto id = reinterpret_cast<EventId>(event);
  gates_.emplace(id, gate);
  return id;
}

void CudaDevice::signal(EventId event) {
  const std::lock_guard lock(mutex_);
  __atomic_store_n(gates_.at(event).word, 1u, __ATOMIC_RELEASE);
}

void CudaDevice::destroy_event(EventId event) {
  const std::lock_guard lock(mutex_);
  const ContextScope scope(*driver_, contexts_[0]);
  KVF_CHECK(driver_->event_destroy(reinterpret_cast<CuEvent>(event)) == cuda::kSuccess);
  gates_.at(event).destroyed = true;
}

}  // namespace kvferry::test
