#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "common/fd.h"
#include "engine/memory/cuda/driver.h"
#include "test/support/fake_cuda/control.h"

#define KVF_FAKE extern "C" __attribute__((visibility("default")))

// The fake driver: libcuda.so.1 for tests. Stricter than CUDA wherever CUDA forgives by luck:
// - Device memory is PROT_NONE; its bytes lie elsewhere, in a memfd.
// - What was put on a stream happens when the stream is synchronised or an event behind it is asked for the second
// time,
//   and no sooner: code that does not wait sees old bytes.
// - Copies, launches, streams and events want the context of the device that the memory is on to be current; unified
//   addressing would let some of it pass.

struct CUctx_st {
  int device = 0;
  int retained = 0;
};

struct CUmod_st {
  CUctx_st* context = nullptr;
};

struct CUstream_st {
  CUctx_st* context = nullptr;
  std::deque<std::function<bool()>> work = {};  // each: false while it has to wait for something
  kvferry::cuda::Code error = kvferry::cuda::kSuccess;
};

struct CUevent_st {
  CUctx_st* context = nullptr;
  CUstream_st* stream = nullptr;  // where it was recorded last; null: never
  bool reached = true;
  int queries = 0;
};

namespace kvferry::fake_cuda {

using cuda::Code;
using cuda::Context;
using cuda::CuEvent;
using cuda::DevicePointer;
using cuda::Module;
using cuda::Stream;

inline constexpr int kDevices = 2;

struct Allocation {
  size_t size = 0;
  std::byte* backing = nullptr;
  UniqueFd fd = {};
  int device = 0;
  bool imported = false;
  bool sync_memops = false;
};

struct World {
  std::mutex mutex;
  bool initialised = false;
  CUctx_st contexts[kDevices];
  std::map<DevicePointer, Allocation> memory;
  std::map<uint64_t, size_t> pinned;
  std::set<Stream> streams;
  std::set<CuEvent> events;
  std::set<Module> modules;
  bool refuses_kernels = false;
  bool withholds_sync_memops = false;
  uint64_t calls = 0;
  uint64_t fail_at = 0;
  bool failed = false;
  uint64_t launches = 0;
  uint64_t batches = 0;
  uint64_t copies = 0;
  uint64_t imports = 0;
  Rdma rdma;
  struct NicWrite {
    DevicePointer to;
    std::vector<std::byte> bytes;
    int device;
  };
  std::vector<NicWrite> unseen;
  uint64_t flushes = 0;
  uint64_t dmabufs = 0;
};

World& world();
// The context that is current in this thread, or null.
Context current();

// All of these REQUIRE world().mutex.

// Counts a call; an error when it is the one that has to fail, or nothing is initialised.
Code enter();
// The allocation around an address, or null; `offset` within it.
Allocation* find(DevicePointer address, size_t* offset = nullptr);
// Where the bytes of device memory are, if it is memory of the current context's device. Null otherwise.
std::byte* reach(DevicePointer address, size_t length, int device);
bool is_pinned(DevicePointer address, size_t length);
// What NICs have written to that GPU's memory is there.
void show_writes(int device);
bool nic_read(void* into, uint64_t address, uint64_t length);
bool nic_write(uint64_t address, const void* from, uint64_t length);
Code map_memory(DevicePointer* address, size_t size, UniqueFd fd, int device, bool imported);

}  // namespace kvferry::fake_cuda
