#include <gtest/gtest.h>

#include "engine/memory/cuda/cuda_memory.h"

#ifdef KVF_HAS_CUDA_H
#include <cuda.h>

#include <tuple>
#include <type_traits>
#endif

// Our declarations of CUDA's driver interface beside cuda.h, where there is one.

namespace kvferry::cuda {
namespace {

#ifdef KVF_HAS_CUDA_H

// Two types that are passed in the same way: the same one, an enum and an int, pointers to such, or structs of the same
// layout (which are compared below).
template <class Ours, class Theirs>
constexpr bool same() {
  if constexpr (std::is_same_v<Ours, Theirs>)
    return true;
  else if constexpr (std::is_pointer_v<Ours> && std::is_pointer_v<Theirs>)
    return same<std::remove_cv_t<std::remove_pointer_t<Ours>>, std::remove_cv_t<std::remove_pointer_t<Theirs>>>();
  else if constexpr (std::is_enum_v<Theirs>)
    return std::is_integral_v<Ours> && sizeof(Ours) == sizeof(Theirs);
  else
    return std::is_class_v<Ours> && std::is_class_v<Theirs> && sizeof(Ours) == sizeof(Theirs) &&
           alignof(Ours) == alignof(Theirs);
}

template <class Ours, class Theirs>
struct SameFunction;
template <class R1, class... A1, class R2, class... A2>
struct SameFunction<R1 (*)(A1...), R2 (*)(A2...)> {
  static constexpr bool compare() {
    if constexpr (sizeof...(A1) != sizeof...(A2))
      return false;
    else
      return same<R1, R2>() && (same<A1, A2>() && ...);
  }
};

#define KVF_SAME(ours, theirs) \
  static_assert(SameFunction<decltype(Driver::ours), decltype(&theirs)>::compare(), #theirs " differs")

KVF_SAME(init, cuInit);
KVF_SAME(driver_version, cuDriverGetVersion);
KVF_SAME(error_name, cuGetErrorName);
KVF_SAME(device_count, cuDeviceGetCount);
KVF_SAME(device_attribute, cuDeviceGetAttribute);
KVF_SAME(flush_writes, cuFlushGPUDirectRDMAWrites);
KVF_SAME(range_handle, cuMemGetHandleForAddressRange);
KVF_SAME(primary_retain, cuDevicePrimaryCtxRetain);
KVF_SAME(primary_release, cuDevicePrimaryCtxRelease_v2);
KVF_SAME(push_context, cuCtxPushCurrent_v2);
KVF_SAME(pop_context, cuCtxPopCurrent_v2);
KVF_SAME(pointer_attribute, cuPointerGetAttribute);
KVF_SAME(set_pointer_attribute, cuPointerSetAttribute);
KVF_SAME(host_alloc, cuMemHostAlloc);
KVF_SAME(host_free, cuMemFreeHost);
KVF_SAME(stream_create, cuStreamCreate);
KVF_SAME(stream_destroy, cuStreamDestroy_v2);
KVF_SAME(stream_synchronize, cuStreamSynchronize);
KVF_SAME(event_create, cuEventCreate);
KVF_SAME(event_destroy, cuEventDestroy_v2);
KVF_SAME(event_record, cuEventRecord);
KVF_SAME(event_query, cuEventQuery);
KVF_SAME(copy_to_host, cuMemcpyDtoHAsync_v2);
KVF_SAME(copy_to_device, cuMemcpyHtoDAsync_v2);
KVF_SAME(copy_any, cuMemcpyAsync);
KVF_SAME(device_uuid, cuDeviceGetUuid_v2);
KVF_SAME(ipc_handle, cuIpcGetMemHandle);
KVF_SAME(ipc_open, cuIpcOpenMemHandle_v2);
KVF_SAME(ipc_close, cuIpcCloseMemHandle);
KVF_SAME(module_load, cuModuleLoadData);
KVF_SAME(module_unload, cuModuleUnload);
KVF_SAME(module_function, cuModuleGetFunction);
KVF_SAME(launch, cuLaunchKernel);
#if CUDA_VERSION >= 13000
KVF_SAME(copy_batch, cuMemcpyBatchAsync);
static_assert(sizeof(CopyAttributes) == sizeof(CUmemcpyAttributes));
static_assert(offsetof(CopyAttributes, to_hint) == offsetof(CUmemcpyAttributes, dstLocHint));
static_assert(offsetof(CopyAttributes, flags) == offsetof(CUmemcpyAttributes, flags));
static_assert(kAccessOrderStream == CU_MEMCPY_SRC_ACCESS_ORDER_STREAM);
#endif

static_assert(kSuccess == CUDA_SUCCESS);
static_assert(kInvalidValue == CUDA_ERROR_INVALID_VALUE);
static_assert(kOutOfMemory == CUDA_ERROR_OUT_OF_MEMORY);
static_assert(kNotInitialized == CUDA_ERROR_NOT_INITIALIZED);
static_assert(kNoDevice == CUDA_ERROR_NO_DEVICE);
static_assert(kInvalidDevice == CUDA_ERROR_INVALID_DEVICE);
static_assert(kInvalidImage == CUDA_ERROR_INVALID_IMAGE);
static_assert(kInvalidContext == CUDA_ERROR_INVALID_CONTEXT);
static_assert(kInvalidHandle == CUDA_ERROR_INVALID_HANDLE);
static_assert(kNotFound == CUDA_ERROR_NOT_FOUND);
static_assert(kNotReady == CUDA_ERROR_NOT_READY);
static_assert(kIllegalAddress == CUDA_ERROR_ILLEGAL_ADDRESS);
static_assert(kNotSupported == CUDA_ERROR_NOT_SUPPORTED);
static_assert(kUnknown == CUDA_ERROR_UNKNOWN);
static_assert(kAttributeMemoryType == CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
static_assert(kAttributeSyncMemops == CU_POINTER_ATTRIBUTE_SYNC_MEMOPS);
static_assert(kAttributeIsManaged == CU_POINTER_ATTRIBUTE_IS_MANAGED);
static_assert(kAttributeDeviceOrdinal == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
static_assert(kAttributeIpcCapable == CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE);
static_assert(kAttributeRangeStart == CU_POINTER_ATTRIBUTE_RANGE_START_ADDR);
static_assert(kAttributeRangeSize == CU_POINTER_ATTRIBUTE_RANGE_SIZE);
static_assert(kMemoryTypeDevice == CU_MEMORYTYPE_DEVICE);
static_assert(kDeviceDirectRdma == CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED);
static_assert(kDeviceFlushOptions == CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS);
static_assert(kDeviceWritesOrdering == CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING);
static_assert(kDeviceDmabuf == CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED);
static_assert(kDevicePciBus == CU_DEVICE_ATTRIBUTE_PCI_BUS_ID);
static_assert(kDevicePciDevice == CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID);
static_assert(kDevicePciDomain == CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID);
static_assert(kFlushByHost == CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST);
static_assert(kOrderedForAll == CU_GPU_DIRECT_RDMA_WRITES_ORDERING_ALL_DEVICES);
static_assert(kFlushCurrentContext == CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX);
static_assert(kFlushToAll == CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_ALL_DEVICES);
static_assert(kRangeDmabuf == CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD);
static_assert(kStreamNonBlocking == CU_STREAM_NON_BLOCKING);
static_assert(kEventDisableTiming == CU_EVENT_DISABLE_TIMING);
static_assert(kHostPortable == CU_MEMHOSTALLOC_PORTABLE);
static_assert(kHostMapped == CU_MEMHOSTALLOC_DEVICEMAP);
static_assert(kIpcLazyPeerAccess == CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
static_assert(sizeof(Uuid) == sizeof(CUuuid));
static_assert(sizeof(IpcHandle) == sizeof(CUipcMemHandle));
static_assert(std::is_same_v<DevicePointer, CUdeviceptr>);
static_assert(std::is_same_v<Context, CUcontext> && std::is_same_v<Stream, CUstream>);
static_assert(std::is_same_v<CuEvent, CUevent> && std::is_same_v<Module, CUmodule>);
static_assert(std::is_same_v<Function, CUfunction> && std::is_same_v<DeviceNumber, CUdevice>);

TEST(CudaDeclarations, AreThoseOfCudaH) {
  SUCCEED() << "compared while this was compiled";
}

#else

TEST(CudaDeclarations, AreThoseOfCudaH) {
  GTEST_SKIP() << "there is no cuda.h to compare with";
}

#endif

TEST(CudaKernel, IsMachineCodeWhereThereIsNvcc) {
  const auto image = Options::compiled_kernel();
  if (image.empty()) GTEST_SKIP() << "built without nvcc";
  ASSERT_GT(image.size(), 1000u);
  EXPECT_EQ(image[0], 0x50);
  EXPECT_EQ(image[3], 0xba);
  const std::string_view text(reinterpret_cast<const char*>(image.data()), image.size());
  EXPECT_NE(text.find(kMoveFunction), std::string_view::npos);
}

}  // namespace
}  // namespace kvferry::cuda
