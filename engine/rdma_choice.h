#pragma once

#include <string>
#include <vector>

#include "engine/config.h"
#include "engine/io/address.h"
#include "engine/io/place.h"

namespace kvferry {

// The addresses on which the fabrics of plug-ins shall listen, and in words what they are.
struct RdmaHosts {
  std::vector<std::string> hosts;
  std::string why;
};

// What the wish "rdma" among an engine's fabrics has to listen on: what the config names, else the host of `listen`
// where that is a device's, else the first address of an interface of an active device, in the order of `devices`; IPv4
// before IPv6. An Error says what is missing. Pure.
Result<RdmaHosts> choose_rdma_hosts(const EngineConfig& config, const std::vector<RdmaDevice>& devices,
                                    const std::vector<InterfaceAddress>& addresses);

}  // namespace kvferry
