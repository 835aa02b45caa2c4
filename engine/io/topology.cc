#include "engine/io/topology.h"

#include <fmt/format.h>

namespace kvferry {
namespace {

Place merge(const std::map<std::string, Place>& known, const std::string& name, Place by_sys) {
  if (!by_sys.pci.empty()) by_sys.pci = "sys:" + by_sys.pci;
  const auto found = known.find(name);
  if (found == known.end()) return by_sys;
  const Place& place = found->second;
  return {place.numa_node >= 0 ? place.numa_node : by_sys.numa_node, place.pci.empty() ? by_sys.pci : place.pci};
}

}  // namespace

std::shared_ptr<const Topology> Topology::with_hwloc(const std::string& sys, const std::string& library) {
  auto topology = std::make_shared<Topology>(sys);
  if (auto places = read_hwloc(library)) {
    topology->source_ = places->source;
    topology->hwloc_ = std::move(*places);
  } else {
    topology->source_ = fmt::format("/sys ({})", places.error().to_string());
  }
  return topology;
}

NetworkDevice Topology::network_device(const std::string& name) const {
  NetworkDevice device = find_network_device(name, sys_);
  if (hwloc_) device.place = merge(hwloc_->network_devices, name, std::move(device.place));
  return device;
}

Place Topology::place_of_pci(const std::string& address) const {
  Place place = kvferry::place_of_pci(address, sys_);
  return hwloc_ ? merge(hwloc_->pci_devices, address, std::move(place)) : place;
}

std::vector<std::vector<int>> Topology::numa_distances() const {
  return hwloc_ && !hwloc_->numa_distances.empty() ? hwloc_->numa_distances : kvferry::numa_distances(sys_);
}

}  // namespace kvferry
