#include "test/support/fake_cuda/world.h"

#include <vector>

#include "engine/memory/cuda/move_spans.h"

// Contexts, modules and what tests steer.

namespace kvferry::fake_cuda {
namespace {

thread_local std::vector<Context> stack;

Live live() {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  Live out{};
  for (const CUctx_st& context : w.contexts) out.contexts += static_cast<uint64_t>(context.retained);
  for (const auto& [address, allocation] : w.memory) ++(allocation.imported ? out.imported : out.memory);
  out.streams = w.streams.size();
  out.events = w.events.size();
  out.modules = w.modules.size();
  out.pinned = w.pinned.size();
  return out;
}

template <auto Member>
auto value() {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  return w.*Member;
}

template <auto Member>
void set(bool to) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  w.*Member = to;
}

template <auto Function, class... Arguments>
bool locked(Arguments... arguments) {
  const std::lock_guard lock(world().mutex);
  return Function(arguments...);
}

constexpr Control kControl{
    .fail_at =
        [](uint64_t nth) {
          World& w = world();
          const std::lock_guard lock(w.mutex);
          w.calls = 0;
          w.fail_at = nth;
          w.failed = false;
        },
    .calls = value<&World::calls>,
    .failed = value<&World::failed>,
    .live = live,
    .refuse_kernels = set<&World::refuses_kernels>,
    .withhold_sync_memops = set<&World::withholds_sync_memops>,
    .launches = value<&World::launches>,
    .batches = value<&World::batches>,
    .copies = value<&World::copies>,
    .imports = value<&World::imports>,
    .synchronises =
        [](uint64_t address) {
          World& w = world();
          const std::lock_guard lock(w.mutex);
          const Allocation* allocation = find(address);
          return allocation != nullptr && allocation->sync_memops;
        },
    .current_device = [] { return current() != nullptr ? current()->device : -1; },
    .set_rdma =
        [](Rdma rdma) {
          World& w = world();
          const std::lock_guard lock(w.mutex);
          w.rdma = rdma;
        },
    .nic_read = locked<nic_read>,
    .nic_write = locked<nic_write>,
    .unseen =
        [] {
          World& w = world();
          const std::lock_guard lock(w.mutex);
          uint64_t bytes = 0;
          for (const World::NicWrite& write : w.unseen) bytes += write.bytes.size();
          return bytes;
        },
    .flushes = value<&World::flushes>,
    .dmabufs = value<&World::dmabufs>,
};

bool is_context(Context context) {
  World& w = world();
  for (const CUctx_st& known : w.contexts)
    if (&known == context) return known.retained > 0;
  return false;
}

}  // namespace

World& world() {
  static World& only = *new World;  // threads of the application may outlive everything static
  return only;
}

Context current() {
  return stack.empty() ? nullptr : stack.back();
}

Code enter() {
  World& w = world();
  if (++w.calls == w.fail_at) {
    w.failed = true;
    return cuda::kUnknown;
  }
  return w.initialised ? cuda::kSuccess : cuda::kNotInitialized;
}

KVF_FAKE const Control* kvf_fake_cuda_control() {
  return &kControl;
}

KVF_FAKE Code cuInit(unsigned) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  w.initialised = true;
  for (int i = 0; i < kDevices; ++i) w.contexts[i].device = i;
  return enter();
}

KVF_FAKE Code cuDriverGetVersion(int* version) {
  *version = 13000;
  return cuda::kSuccess;
}

KVF_FAKE Code cuGetErrorName(Code code, const char** name) {
  switch (code) {
    case cuda::kInvalidValue:
      *name = "CUDA_ERROR_INVALID_VALUE";
      return cuda::kSuccess;
    case cuda::kInvalidContext:
      *name = "CUDA_ERROR_INVALID_CONTEXT";
      return cuda::kSuccess;
    case cuda::kInvalidHandle:
      *name = "CUDA_ERROR_INVALID_HANDLE";
      return cuda::kSuccess;
    case cuda::kInvalidImage:
      *name = "CUDA_ERROR_INVALID_IMAGE";
      return cuda::kSuccess;
    case cuda::kIllegalAddress:
      *name = "CUDA_ERROR_ILLEGAL_ADDRESS";
      return cuda::kSuccess;
    case cuda::kUnknown:
      *name = "CUDA_ERROR_UNKNOWN";
      return cuda::kSuccess;
    default:
      return cuda::kInvalidValue;
  }
}

KVF_FAKE Code cuDeviceGetCount(int* count) {
  const std::lock_guard lock(world().mutex);
  *count = kDevices;
  return enter();
}

KVF_FAKE Code cuDevicePrimaryCtxRetain(Context* context, int device) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  if (device < 0 || device >= kDevices) return cuda::kInvalidDevice;
  ++w.contexts[device].retained;
  *context = &w.contexts[device];
  return cuda::kSuccess;
}

KVF_FAKE Code cuDevicePrimaryCtxRelease_v2(int device) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (device < 0 || device >= kDevices || w.contexts[device].retained == 0) return cuda::kInvalidDevice;
  --w.contexts[device].retained;
  return enter();
}

KVF_FAKE Code cuCtxPushCurrent_v2(Context context) {
  const std::lock_guard lock(world().mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  if (!is_context(context)) return cuda::kInvalidContext;
  stack.push_back(context);
  return cuda::kSuccess;
}

KVF_FAKE Code cuCtxPopCurrent_v2(Context* context) {
  const std::lock_guard lock(world().mutex);
  if (stack.empty()) return cuda::kInvalidContext;
  if (context != nullptr) *context = stack.back();
  stack.pop_back();
  return enter();
}

// Of the tests alone.
KVF_FAKE Code cuCtxGetCurrent(Context* context) {
  *context = current();
  return cuda::kSuccess;
}

KVF_FAKE Code cuModuleLoadData(Module* module, const void* image) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  if (current() == nullptr) return cuda::kInvalidContext;
  constexpr uint32_t kFatbin = 0xba55ed50;
  uint32_t magic = 0;
  __builtin_memcpy(&magic, image, sizeof(magic));
  if (w.refuses_kernels || magic != kFatbin) return cuda::kInvalidImage;
  *module = new CUmod_st{current()};
  w.modules.insert(*module);
  return cuda::kSuccess;
}

KVF_FAKE Code cuModuleUnload(Module module) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (w.modules.erase(module) == 0) return cuda::kInvalidHandle;
  if (module->context != current()) return cuda::kInvalidContext;
  delete module;
  return enter();
}

KVF_FAKE Code cuModuleGetFunction(cuda::Function* function, Module module, const char* name) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  if (!w.modules.contains(module)) return cuda::kInvalidHandle;
  if (std::string(name) != cuda::kMoveFunction) return cuda::kNotFound;
  *function = reinterpret_cast<cuda::Function>(module);
  return cuda::kSuccess;
}

}  // namespace kvferry::fake_cuda
