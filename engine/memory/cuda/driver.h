#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "common/result.h"

// Handles of the driver, under the names that cuda.h gives their types.
struct CUctx_st;
struct CUevent_st;
struct CUfunc_st;
struct CUmod_st;
struct CUstream_st;

namespace kvferry::cuda {

// What this engine uses of CUDA's driver interface, declared anew: the same sources are built wherever there is no
// CUDA, and nothing links against it. Where cuda.h is at hand, test/cuda/declarations_test.cc holds every line against
// it.
using Code = int;  // CUresult
using DevicePointer = unsigned long long;
using DeviceNumber = int;
using Context = CUctx_st*;
using CuEvent = CUevent_st*;
using Function = CUfunc_st*;
using Module = CUmod_st*;
using Stream = CUstream_st*;

inline constexpr Code kSuccess = 0;
inline constexpr Code kInvalidValue = 1;
inline constexpr Code kOutOfMemory = 2;
inline constexpr Code kNotInitialized = 3;
inline constexpr Code kNoDevice = 100;
inline constexpr Code kInvalidDevice = 101;
inline constexpr Code kInvalidImage = 200;
inline constexpr Code kInvalidContext = 201;
inline constexpr Code kInvalidHandle = 400;
inline constexpr Code kNotFound = 500;
inline constexpr Code kNotReady = 600;
inline constexpr Code kIllegalAddress = 700;
inline constexpr Code kNotSupported = 801;
inline constexpr Code kUnknown = 999;

inline constexpr int kAttributeMemoryType = 2;
inline constexpr int kAttributeSyncMemops = 6;
inline constexpr int kAttributeIsManaged = 8;
inline constexpr int kAttributeDeviceOrdinal = 9;
inline constexpr int kAttributeIpcCapable = 10;
inline constexpr int kAttributeRangeStart = 11;
inline constexpr int kAttributeRangeSize = 12;
inline constexpr unsigned kMemoryTypeDevice = 2;

inline constexpr int kDeviceDirectRdma = 116;  // whether NICs reach its memory through the driver of their own
inline constexpr int kDeviceFlushOptions = 117;
inline constexpr int kDeviceWritesOrdering = 118;
inline constexpr int kDeviceDmabuf = 124;
inline constexpr int kDevicePciBus = 33;
inline constexpr int kDevicePciDevice = 34;
inline constexpr int kDevicePciDomain = 50;
inline constexpr int kFlushByHost = 1;      // a bit of kDeviceFlushOptions: flush_writes works
inline constexpr int kOrderedForAll = 200;  // of kDeviceWritesOrdering: no device needs a flush
inline constexpr int kFlushCurrentContext = 0;
inline constexpr int kFlushToAll = 200;
inline constexpr int kRangeDmabuf = 1;

inline constexpr unsigned kStreamNonBlocking = 1;
inline constexpr unsigned kEventDisableTiming = 2;
inline constexpr unsigned kHostPortable = 1;
inline constexpr unsigned kHostMapped = 2;
inline constexpr unsigned kIpcLazyPeerAccess = 1;
inline constexpr int kAccessOrderStream = 1;

struct IpcHandle {
  char bytes[64];
};
struct Uuid {
  char bytes[16];
};
struct Location {
  int type;
  int id;
};
struct CopyAttributes {
  int access_order;
  Location from_hint;
  Location to_hint;
  unsigned flags;
};

// One driver, loaded at run time. Every member is set but those that are marked optional.
struct Driver {
  Code (*init)(unsigned flags);
  Code (*driver_version)(int* version);
  Code (*error_name)(Code code, const char** name);
  Code (*device_count)(int* count);
  Code (*device_attribute)(int* value, int attribute, DeviceNumber device);
  Code (*primary_retain)(Context* context, DeviceNumber device);
  Code (*primary_release)(DeviceNumber device);
  Code (*push_context)(Context context);
  Code (*pop_context)(Context* context);
  Code (*pointer_attribute)(void* value, int attribute, DevicePointer pointer);
  Code (*set_pointer_attribute)(const void* value, int attribute, DevicePointer pointer);
  Code (*host_alloc)(void** memory, size_t bytes, unsigned flags);
  Code (*host_free)(void* memory);
  Code (*stream_create)(Stream* stream, unsigned flags);
  Code (*stream_destroy)(Stream stream);
  Code (*stream_synchronize)(Stream stream);
  Code (*event_create)(CuEvent* event, unsigned flags);
  Code (*event_destroy)(CuEvent event);
  Code (*event_record)(CuEvent event, Stream stream);
  Code (*event_query)(CuEvent event);
  Code (*copy_to_host)(void* to, DevicePointer from, size_t bytes, Stream stream);
  Code (*copy_to_device)(DevicePointer to, const void* from, size_t bytes, Stream stream);
  Code (*copy_any)(DevicePointer to, DevicePointer from, size_t bytes, Stream stream);
  Code (*device_uuid)(Uuid* uuid, DeviceNumber device);
  Code (*ipc_handle)(IpcHandle* handle, DevicePointer memory);
  Code (*ipc_open)(DevicePointer* memory, IpcHandle handle, unsigned flags);
  Code (*ipc_close)(DevicePointer memory);
  Code (*module_load)(Module* module, const void* image);
  Code (*module_unload)(Module module);
  Code (*module_function)(Function* function, Module module, const char* name);
  Code (*launch)(Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                 unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream stream, void** parameters,
                 void** extra);
  // Optional: drivers of CUDA 11.3 and 11.7 and later.
  Code (*flush_writes)(int target, int scope);
  Code (*range_handle)(void* handle, DevicePointer start, size_t size, int type, unsigned long long flags);
  // Optional: drivers of CUDA 13 and later.
  Code (*copy_batch)(DevicePointer* to, DevicePointer* from, size_t* bytes, size_t count, CopyAttributes* attributes,
                     size_t* attribute_starts, size_t attribute_count, Stream stream);

  // Opens the library and initialises the driver. An Error says why this process has no CUDA.
  static Result<std::shared_ptr<const Driver>> load(const std::string& library);
  // Whether the library and its functions are there; initialises nothing.
  static Status look(const std::string& library);
  // Whether that driver, if this process has loaded and initialised it already, knows memory of a GPU there.
  static bool owns(const std::string& library, const void* address);

  // `ok`, or what failed, with the driver's name for the reason.
  Status check(Code code, const char* what) const;
};

// Makes a context current in this thread, whoever's thread it is, and puts back what was there before.
class ContextScope {
 public:
  // What has to be given back whatever happens tries more than once.
  enum class Tries : int { once = 1, twice = 2 };
  ContextScope(const Driver& driver, Context context, Tries tries = Tries::once);
  ~ContextScope();
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;
  const Status& status() const { return status_; }

 private:
  const Driver& driver_;
  Status status_;
};

}  // namespace kvferry::cuda
