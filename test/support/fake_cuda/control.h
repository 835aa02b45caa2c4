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
};

using GetControl = const Control* (*)();
inline constexpr char kGetControl[] = "kvf_fake_cuda_control";

}  // namespace kvferry::fake_cuda
