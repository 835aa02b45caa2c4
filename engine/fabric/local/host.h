#pragma once

#include <cstdint>
#include <string>

namespace kvferry {

// Where an engine runs (proto Host).
struct HostIdentity {
  std::string boot_id;
  uint64_t pid_namespace = 0;
  uint32_t pid = 0;
  uint32_t uid = 0;

  bool same_host(const HostIdentity& other) const {
    return !boot_id.empty() && boot_id == other.boot_id && pid_namespace == other.pid_namespace;
  }
};

HostIdentity this_host();

}  // namespace kvferry
