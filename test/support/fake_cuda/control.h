#pragma once

#include <cstdint>

namespace kvferry::fake_cuda {

// What stands in the fake driver at one moment. All zero: nothing leaked.
struct Live {
  uint64_t contexts;  // retained
  uint64_t streams;
  uint64_t events;
  uint64_t modules;
  uint64_t pinned;    // ranges of locked host memory
  uint64_t memory;    // allocations of device memory
  uint64_t imported;  // mappings of other processes' memory

  uint64_t of_the_kind() const { return contexts + streams + events + modules + pinned + imported; }
};

// What the fake GPUs offer to NICs.
struct Rdma {
  bool direct = true;
  bool dmabuf = true;
  bool ordered = true;  // what a NIC writes, for all devices
  bool flush = true;    // offered
};

// How tests steer the fake driver. Of this process; thread-safe.
struct Control {
  // The nth call of the functions that the engine uses, counted from now on, fails (1 is the next); 0: none does. A
  // function that gives something back does so all the same, as the real ones do when they report an earlier error.
  void (*fail_at)(uint64_t nth);
  uint64_t (*calls)();  // since fail_at()
  bool (*failed)();     // whether the nth came
  Live (*live)();
  void (*refuse_kernels)(bool refuse);          // as a driver that is older than nvcc
  void (*withhold_sync_memops)(bool withhold);  // as allocators that do not offer it
  uint64_t (*launches)();                       // of the kernel, so far
  uint64_t (*batches)();                        // calls of cuMemcpyBatchAsync, so far
  uint64_t (*copies)();                         // single asynchronous copies, so far
  uint64_t (*imports)();                        // openings of other processes' memory, so far
  bool (*synchronises)(uint64_t address);       // whether SYNC_MEMOPS is set on that allocation
  int (*current_device)();                      // of this thread's context; -1: none is current

  // NICs. Where writes are not ordered, what one has written is seen by nobody before the driver has flushed it, or a
  // NIC has read from that GPU.
  void (*set_rdma)(Rdma rdma);
  bool (*nic_read)(void* into, uint64_t address, uint64_t length);  // false: not memory of a GPU
  bool (*nic_write)(uint64_t address, const void* from, uint64_t length);
  uint64_t (*unseen)();   // bytes that a NIC has written and nobody sees
  uint64_t (*flushes)();  // so far
  uint64_t (*dmabufs)();  // given out so far
};

using GetControl = const Control* (*)();
inline constexpr char kGetControl[] = "kvf_fake_cuda_control";

}  // namespace kvferry::fake_cuda
