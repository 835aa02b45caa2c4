#include "engine/rdma_choice.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace kvferry {
namespace {

struct Candidate {
  const RdmaDevice* device;
  const InterfaceAddress* address;
  std::string why() const {
    return fmt::format("{} at {}, an address of {}", device->name, address->host, address->interface);
  }
};

std::vector<Candidate> candidates_of(const std::vector<const RdmaDevice*>& devices,
                                     const std::vector<InterfaceAddress>& addresses) {
  std::vector<Candidate> out;
  for (const bool v6 : {false, true})
    for (const RdmaDevice* device : devices)
      for (const InterfaceAddress& address : addresses)
        if ((address.host.find(':') != std::string::npos) == v6 &&
            std::find(device->interfaces.begin(), device->interfaces.end(), address.interface) !=
                device->interfaces.end())
          out.push_back({device, &address});
  return out;
}

std::string names_of(const std::vector<const RdmaDevice*>& devices) {
  std::string out;
  for (const RdmaDevice* device : devices) out += (out.empty() ? "" : ", ") + device->name;
  return out;
}

}  // namespace

Result<RdmaHosts> choose_rdma_hosts(const EngineConfig& config, const std::vector<RdmaDevice>& devices,
                                    const std::vector<InterfaceAddress>& addresses) {
  std::vector<const RdmaDevice*> all;
  std::vector<const RdmaDevice*> active;
  for (const RdmaDevice& device : devices) {
    all.push_back(&device);
    if (device.active) active.push_back(&device);
  }
  const auto missing = [](std::string what) { return Error{ErrorCode::unsupported, std::move(what)}; };
  if (config.strict) return missing("a strict engine uses the fabric tcp alone");
  if (all.empty()) return missing(fmt::format("this machine has no RDMA device ({}/class/infiniband)", config.sys));
  if (active.empty()) return missing(fmt::format("no port of {} is active", names_of(all)));
  if (!config.rdma_hosts.empty())
    return RdmaHosts{config.rdma_hosts, fmt::format("{} (KVFERRY_RDMA_HOST)", fmt::join(config.rdma_hosts, ", "))};

  KVF_ASSIGN_OR_RETURN(const Address listen, parse_address(config.listen, false));
  const std::vector<Candidate> found = candidates_of(active, addresses);
  const auto same =
      std::find_if(found.begin(), found.end(), [&](const Candidate& one) { return one.address->host == listen.host; });
  if (same != found.end()) return RdmaHosts{{listen.host}, same->why()};
  // What only this host reaches must not be opened to others by the way.
  if (listen.is_loopback())
    return missing(fmt::format("no other host reaches {}: set KVFERRY_LISTEN to an address of {}, or KVFERRY_RDMA_HOST",
                               config.listen, names_of(active)));
  if (found.empty())
    return missing(fmt::format("no interface of {} has an address: set KVFERRY_RDMA_HOST", names_of(active)));
  return RdmaHosts{{found.front().address->host}, found.front().why()};
}

}  // namespace kvferry
