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

std::string line_in(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

}  // namespace

std::vector<fs::path> entries(const fs::path& folder) {
  std::vector<fs::path> out;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) out.push_back(entry.path());
  std::sort(out.begin(), out.end());
  return out;
}

// By the interfaces of its ports' addresses (RoCE, with what stands on them, and Soft-RoCE's), and by those that the
// same hardware has (IPoIB).
std::vector<RdmaDevice> find_rdma_devices(const std::string& sys) {
  std::vector<RdmaDevice> out;
  for (const fs::path& folder : entries(fs::path(sys) / "class/infiniband")) {
    RdmaDevice& device = out.emplace_back(RdmaDevice{folder.filename().string(), false, {}});
    const auto add = [&](const std::string& name) {
      const auto known = std::find(device.interfaces.begin(), device.interfaces.end(), name);
      if (!name.empty() && known == device.interfaces.end()) device.interfaces.push_back(name);
    };
    for (const fs::path& port : entries(folder / "ports")) {
      if (line_in(port / "state").find("ACTIVE") == std::string::npos) continue;  // "4: ACTIVE"
      device.active = true;
      for (const fs::path& index : entries(port / "gid_attrs/ndevs")) add(line_in(index));
    }
    for (const fs::path& link : entries(folder / "device/net")) add(link.filename().string());
  }
  return out;
}

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
