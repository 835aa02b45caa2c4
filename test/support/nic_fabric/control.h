#pragma once

#include <cstdint>

namespace kvferry::nic_fabric {

// How tests steer and look into the fabric of a NIC that is not there. Of this process; thread-safe.
struct Control {
  uint64_t (*mapped)(int kind);  // ranges of that kvf_memory_kind that engines have registered, now
  uint64_t (*with_dmabuf)();     // of those of GPUs, so far, that came with a descriptor for them
  uint64_t (*gpu_bytes)();       // moved from or to memory of GPUs, so far
  void (*hold)(bool hold);       // operations have moved their bytes, and their end is not told
};

using GetControl = const Control* (*)();
inline constexpr char kGetControl[] = "kvf_nic_fabric_control";

}  // namespace kvferry::nic_fabric
