#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace kvferry {

// Where a device or memory is in a machine, as far as the kernel says.
struct Place {
  int numa_node = -1;  // -1: unknown
  std::string pci;     // a device's bridges and itself, from the root: "pci0000:00/0000:00:01.0/0000:01:00.0"
};

// A network device, by its name in /sys/class/infiniband or /sys/class/net.
struct NetworkDevice {
  std::string name;
  Place place;
  double gigabits = 0;  // of its fastest port a second; 0: unknown
};

// One that may be there for RDMA.
struct RdmaDevice {
  std::string name;
  bool active = false;                  // one port of it at least
  std::vector<std::string> interfaces;  // of the network, whose addresses are its own
};

// What is in a folder, by name; nothing where there is none.
std::vector<std::filesystem::path> entries(const std::filesystem::path& folder);

// Those under `sys`, by name.
std::vector<RdmaDevice> find_rdma_devices(const std::string& sys = "/sys");

// What the kernel tells of devices under `sys` (/sys); topology.h asks hwloc, too. Unknown names are devices of which
// nothing is known.
NetworkDevice find_network_device(const std::string& name, const std::string& sys = "/sys");
// By its PCI address, "0000:3b:00.0".
Place place_of_pci(const std::string& address, const std::string& sys = "/sys");

// The firmware's distances between NUMA nodes, 10 from a node to itself: [from][to]. Empty where it has none.
std::vector<std::vector<int>> numa_distances(const std::string& sys = "/sys");

// Of the page at that address, which is made present.
Place place_of_memory(const void* address);

}  // namespace kvferry
