#include "engine/io/place.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace kvferry {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMostNodes = 1024;  // of a kernel's

double number_in(const fs::path& path, double otherwise) {
  std::ifstream file(path);
  double number = 0;
  return file >> number ? number : otherwise;
}

// From the link that a device's folder has to its place in the tree of all devices.
Place place_of(const fs::path& device) {
  Place place;
  std::error_code error;
  const fs::path real = fs::canonical(device, error);
  if (error) return place;
  place.numa_node = static_cast<int>(number_in(real / "numa_node", -1));
  bool below_root = false;
  for (const fs::path& part : real) {
    below_root |= part.string().starts_with("pci");
    if (below_root) place.pci += (place.pci.empty() ? "" : "/") + part.string();
  }
  return place;
}

}  // namespace

NetworkDevice find_network_device(const std::string& name, const std::string& sys) {
  NetworkDevice out{name, {}, 0};
  if (name.empty() || name.find('/') != std::string::npos) return out;
  std::error_code error;
  const fs::path rdma = fs::path(sys) / "class/infiniband" / name;
  const fs::path link = fs::path(sys) / "class/net" / name;
  if (fs::exists(rdma, error)) {
    out.place = place_of(rdma / "device");
    for (const auto& port : fs::directory_iterator(rdma / "ports", error))
      out.gigabits = std::max(out.gigabits, number_in(port.path() / "rate", 0));  // "100 Gb/sec (4X EDR)"
  } else if (fs::exists(link, error)) {
    out.place = place_of(link / "device");
    out.gigabits = std::max(number_in(link / "speed", 0), 0.0) / 1000;  // of megabits, -1 where it is not known
  }
  return out;
}

Place place_of_pci(const std::string& address, const std::string& sys) {
  return place_of(fs::path(sys) / "bus/pci/devices" / address);
}

std::vector<std::vector<int>> numa_distances(const std::string& sys) {
  std::vector<std::vector<int>> out;
  for (size_t node = 0; node < kMostNodes; ++node) {
    std::ifstream file(fs::path(sys) / "devices/system/node" / ("node" + std::to_string(node)) / "distance");
    if (!file) break;
    std::vector<int>& row = out.emplace_back();
    for (int distance = 0; file >> distance;) row.push_back(distance);
  }
  return out;
}

// The call is what libnuma makes of it; a container that forbids it leaves the place unknown.
Place place_of_memory(const void* address) {
  constexpr unsigned long kNode = 1;     // MPOL_F_NODE
  constexpr unsigned long kAddress = 2;  // MPOL_F_ADDR
  int node = -1;
  if (::syscall(SYS_get_mempolicy, &node, nullptr, 0UL, address, kNode | kAddress) != 0) node = -1;
  return {node, ""};
}

}  // namespace kvferry
