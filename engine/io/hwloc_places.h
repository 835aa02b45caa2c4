#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/result.h"
#include "engine/io/place.h"

namespace kvferry {

// What hwloc knows of where devices are, copied out of it. Places that it does not know are -1 and "".
struct HwlocPlaces {
  std::string source;                            // for a person: "hwloc (API 2.8)"
  std::map<std::string, Place> network_devices;  // by name: "mlx5_0", "eth0"
  std::map<std::string, Place> pci_devices;      // by address: "0000:3b:00.0"
  std::vector<std::vector<int>> numa_distances;  // [from][to]; 0: unknown
};

// Loads the library and lets it look at this machine, or at what the process's environment gives it instead
// (HWLOC_XMLFILE and its like, which hwloc reads by itself): some milliseconds. An Error where the library is not there
// or too old, and in a build without hwloc's header (hwloc_absent.cc).
Result<HwlocPlaces> read_hwloc(const std::string& library);

}  // namespace kvferry
