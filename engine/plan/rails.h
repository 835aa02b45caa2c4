#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/io/place.h"

namespace kvferry {

// How far memory is from a network device: 0 where it is not known of both, so that all such are alike.
//   1  behind one PCI switch, 2 behind one root, 10 and more: the firmware's distance of their NUMA nodes
uint32_t distance(const Place& memory, const Place& device, const std::vector<std::vector<int>>& numa_distances);

// One of several ways to a peer, when work is given out.
struct Rail {
  bool usable = true;     // false: taken out
  uint32_t distance = 0;  // from the memory that is meant
  double gigabits = 0;    // 0: unknown
  uint64_t waiting = 0;   // bytes that it was given and that have not ended
};

// Which rail takes the next `bytes`: of the nearest that are usable the one that would be through with them first.
// Nothing: those are full, with `depth` bytes each, and their ends are to be waited for. Farther ones are for when no
// near one is usable: a path between sockets is slower for all who use it. If none is usable, all are tried.
std::optional<size_t> choose_rail(std::span<const Rail> rails, uint64_t bytes, uint64_t depth);

}  // namespace kvferry
