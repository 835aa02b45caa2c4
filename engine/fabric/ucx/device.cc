#include "engine/fabric/ucx/device.h"

#include <arpa/inet.h>
#include <ifaddrs.h>

#include <filesystem>
#include <fstream>
#include <memory>

namespace kvferry::ucx {
namespace {

namespace fs = std::filesystem;

std::string interface_at(const std::string& host) {
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return "";
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owned(all, freeifaddrs);
  for (const ifaddrs* each = all; each != nullptr; each = each->ifa_next) {
    if (each->ifa_addr == nullptr) continue;
    char text[INET6_ADDRSTRLEN] = "";
    if (each->ifa_addr->sa_family == AF_INET)
      ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(each->ifa_addr)->sin_addr, text, sizeof text);
    else if (each->ifa_addr->sa_family == AF_INET6)
      ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(each->ifa_addr)->sin6_addr, text, sizeof text);
    if (host != text) continue;
    const std::string name = each->ifa_name;
    return name.substr(0, name.find(':'));  // "eth0:1": a label of eth0
  }
  return "";
}

bool has_address_of(const fs::path& port, const std::string& interface) {
  std::error_code error;
  for (const auto& index : fs::directory_iterator(port / "gid_attrs" / "ndevs", error)) {
    std::ifstream file(index.path());
    std::string name;
    if (file >> name && name == interface) return true;
  }
  return false;
}

}  // namespace

// By its ports' addresses (RoCE, with what stands on them, and Soft-RoCE's), or by what the same hardware has (IPoIB:
// the interface says which of its ports it is, and counts from 0).
std::string rdma_port_of(const std::string& interface, const std::string& sys) {
  std::error_code error;
  std::string of_hardware;
  for (const auto& device : fs::directory_iterator(fs::path(sys) / "class/infiniband", error)) {
    const std::string name = device.path().filename().string();
    for (const auto& port : fs::directory_iterator(device.path() / "ports", error))
      if (has_address_of(port.path(), interface)) return name + ":" + port.path().filename().string();
    const fs::path link = device.path() / "device" / "net" / interface;
    std::ifstream file(link / "dev_port");
    unsigned port = 0;
    if (fs::exists(link, error) && (!file || file >> port)) of_hardware = name + ":" + std::to_string(port + 1);
  }
  return of_hardware;
}

std::string rdma_port_at(const std::string& host) {
  const std::string interface = interface_at(host);
  return interface.empty() ? "" : rdma_port_of(interface);
}

}  // namespace kvferry::ucx
