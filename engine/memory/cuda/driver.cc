#include "engine/memory/cuda/driver.h"

#include <dlfcn.h>
#include <fmt/format.h>

namespace kvferry::cuda {
namespace {

struct Symbol {
  const char* name;
  void** place;
  bool optional = false;
};

template <class F>
void** place_of(F& function) {
  static_assert(sizeof(function) == sizeof(void*));
  return reinterpret_cast<void**>(&function);
}

Status bind(void* library, const Symbol& symbol) {
  *symbol.place = ::dlsym(library, symbol.name);
  if (*symbol.place != nullptr || symbol.optional) return {};
  return Error{ErrorCode::unsupported, fmt::format("the CUDA driver is too old: it has no {}", symbol.name)};
}

Status bind_all(void* library, Driver& d) {
  const Symbol symbols[] = {
      {"cuInit", place_of(d.init)},
      {"cuDriverGetVersion", place_of(d.driver_version)},
      {"cuGetErrorName", place_of(d.error_name)},
      {"cuDeviceGetCount", place_of(d.device_count)},
      {"cuDeviceGetAttribute", place_of(d.device_attribute)},
      {"cuDevicePrimaryCtxRetain", place_of(d.primary_retain)},
      {"cuDevicePrimaryCtxRelease_v2", place_of(d.primary_release)},
      {"cuCtxPushCurrent_v2", place_of(d.push_context)},
      {"cuCtxPopCurrent_v2", place_of(d.pop_context)},
      {"cuPointerGetAttribute", place_of(d.pointer_attribute)},
      {"cuPointerSetAttribute", place_of(d.set_pointer_attribute)},
      {"cuMemHostAlloc", place_of(d.host_alloc)},
      {"cuMemFreeHost", place_of(d.host_free)},
      {"cuStreamCreate", place_of(d.stream_create)},
      {"cuStreamDestroy_v2", place_of(d.stream_destroy)},
      {"cuStreamSynchronize", place_of(d.stream_synchronize)},
      {"cuEventCreate", place_of(d.event_create)},
      {"cuEventDestroy_v2", place_of(d.event_destroy)},
      {"cuEventRecord", place_of(d.event_record)},
      {"cuEventQuery", place_of(d.event_query)},
      {"cuMemcpyDtoHAsync_v2", place_of(d.copy_to_host)},
      {"cuMemcpyHtoDAsync_v2", place_of(d.copy_to_device)},
      {"cuMemcpyAsync", place_of(d.copy_any)},
      {"cuDeviceGetUuid_v2", place_of(d.device_uuid)},
      {"cuIpcGetMemHandle", place_of(d.ipc_handle)},
      {"cuIpcOpenMemHandle_v2", place_of(d.ipc_open)},
      {"cuIpcCloseMemHandle", place_of(d.ipc_close)},
      {"cuModuleLoadData", place_of(d.module_load)},
      {"cuModuleUnload", place_of(d.module_unload)},
      {"cuModuleGetFunction", place_of(d.module_function)},
      {"cuLaunchKernel", place_of(d.launch)},
      {"cuFlushGPUDirectRDMAWrites", place_of(d.flush_writes), true},
      {"cuMemGetHandleForAddressRange", place_of(d.range_handle), true},
      {"cuMemcpyBatchAsync_v2", place_of(d.copy_batch), true},
  };
  for (const Symbol& symbol : symbols) KVF_RETURN_IF_ERROR(bind(library, symbol));
  return {};
}

// The library stays loaded: a driver that was initialised cannot be taken away from under its threads.
Result<std::shared_ptr<Driver>> open(const std::string& library) {
  void* handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* why = ::dlerror();
    return Error{ErrorCode::unsupported, fmt::format("no CUDA driver: cannot load {}", library),
                 why != nullptr ? why : "no reason given"};
  }
  auto driver = std::make_shared<Driver>();
  KVF_RETURN_IF_ERROR(bind_all(handle, *driver));
  return driver;
}

ErrorCode code_for(Code code) {
  switch (code) {
    case kOutOfMemory:
      return ErrorCode::resource_exhausted;
    case kInvalidHandle:
    case kNotFound:
      return ErrorCode::not_found;
    case kNoDevice:
    case kNotSupported:
      return ErrorCode::unsupported;
    default:
      return ErrorCode::internal;
  }
}

}  // namespace

Result<std::shared_ptr<const Driver>> Driver::load(const std::string& library) {
  KVF_ASSIGN_OR_RETURN(const std::shared_ptr<Driver> driver, open(library));
  KVF_RETURN_IF_ERROR(driver->check(driver->init(0), "cannot initialise the CUDA driver"));
  return std::shared_ptr<const Driver>(driver);
}

Status Driver::look(const std::string& library) {
  KVF_ASSIGN_OR_RETURN([[maybe_unused]] const std::shared_ptr<Driver> driver, open(library));
  return {};
}

bool Driver::owns(const std::string& library, const void* address) {
  void* handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
  if (handle == nullptr) return false;  // nobody here can have such memory
  const auto ask = reinterpret_cast<decltype(Driver::pointer_attribute)>(::dlsym(handle, "cuPointerGetAttribute"));
  const auto at = static_cast<DevicePointer>(reinterpret_cast<uintptr_t>(address));
  unsigned type = 0;
  int managed = 0;
  const bool known = ask != nullptr && ask(&type, kAttributeMemoryType, at) == kSuccess &&
                     ask(&managed, kAttributeIsManaged, at) == kSuccess;
  ::dlclose(handle);  // what the lookup has added
  return known && type == kMemoryTypeDevice && managed == 0;
}

Status Driver::check(Code code, const char* what) const {
  if (code == kSuccess) return {};
  const char* name = nullptr;
  if (error_name(code, &name) != kSuccess || name == nullptr) name = "an error that the driver has no name for";
  return Error{code_for(code), what, fmt::format("{} ({})", name, code)};
}

ContextScope::ContextScope(const Driver& driver, Context context, Tries tries) : driver_(driver) {
  for (int left = static_cast<int>(tries); left > 0; --left) {
    status_ = driver.check(driver.push_context(context), "cannot make a CUDA context current");
    if (status_.ok()) return;
  }
}

ContextScope::~ContextScope() {
  if (!status_.ok()) return;
  // It may report what an earlier copy ran into; the context is popped all the same.
  Context popped = nullptr;
  static_cast<void>(driver_.pop_context(&popped));
}

}  // namespace kvferry::cuda
