#pragma once

#include <map>
#include <string>

#include "engine/fabric/plugin_abi.h"

namespace kvferry::ofi {

// What the user says of libfabric: the provider, and variables of libfabric's by their names without "FI_".
class Settings {
 public:
  static Settings of(const kvf_open_params& params);

  // As libfabric names it: "tcp;ofi_rxm".
  const std::string& provider() const { return provider_; }
  // Names of its endpoints are socket addresses, whose host chooses the device.
  bool uses_sockets() const;
  // Memory that processes of one host share; its queues wake nobody, and have to be looked at.
  bool is_shared_memory() const { return provider_ == "shm"; }
  // Devices move the bytes and check keys; otherwise the owner's CPU does, or a neighbour's.
  bool is_rdma() const;
  const std::map<std::string, std::string>& variables() const { return variables_; }

 private:
  std::string provider_ = "verbs";
  std::map<std::string, std::string> variables_;
};

}  // namespace kvferry::ofi
