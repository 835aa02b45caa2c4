#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/io/hwloc_places.h"
#include "engine/io/place.h"

namespace kvferry {

inline constexpr const char* kHwloc = "libhwloc.so.15";  // of hwloc 2

// Where the devices of this machine are: as hwloc knows it, else as /sys says, each field for itself. Immutable, and
// thread-safe.
//
// REQUIRES of who compares places: devices' come from one Topology. NUMA nodes are the kernel's numbers wherever they
// come from, place_of_memory() included. Two trees of PCI devices need not agree, since hwloc may have been given
// another machine's than the kernel shows. So where hwloc is used, a path of /sys begins with a root of its own,
// "sys:pci0000:00/...": it shares bridges with other paths of /sys and none with hwloc's, and NUMA nodes decide.
class Topology {
 public:
  // By /sys alone.
  explicit Topology(std::string sys = "/sys") : sys_(std::move(sys)) {}
  // With hwloc where that library can be loaded, once and for all look-ups (read_hwloc()).
  static std::shared_ptr<const Topology> with_hwloc(const std::string& sys = "/sys",
                                                    const std::string& library = kHwloc);

  // As find_network_device(), place_of_pci() and numa_distances().
  NetworkDevice network_device(const std::string& name) const;
  Place place_of_pci(const std::string& address) const;
  std::vector<std::vector<int>> numa_distances() const;

  // For a person: where it comes from, and why not from hwloc.
  const std::string& source() const { return source_; }

 private:
  std::string sys_;
  std::string source_ = "/sys";
  std::optional<HwlocPlaces> hwloc_;
};

}  // namespace kvferry
