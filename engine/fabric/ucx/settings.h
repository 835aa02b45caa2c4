#pragma once

#include <ucp/api/ucp.h>

#include <map>
#include <set>
#include <string>

#include "engine/fabric/plugin_abi.h"

namespace kvferry::ucx {

// UCX's configuration: what this fabric needs, and over it what the user says.
class Settings {
 public:
  static Settings of(const kvf_open_params& params);

  // REQUIRES: the caller releases what it is given.
  ucs_status_t read(ucp_config_t** out, kvf_text why) const;

  std::string transports() const { return values_.at("TLS"); }
  // The one that NET_DEVICES names, without its port; empty where that is not so.
  std::string device() const;
  // Every transport is one whose device moves the bytes itself and checks keys.
  bool only_rdma() const;
  // Some transport leaves bytes in memory that a peer's process shares: ending the connection does not end them.
  bool uses_shared_memory() const;

 private:
  std::map<std::string, std::string> values_;  // by UCX's name, without "UCX_"
  std::set<std::string> asked_;                // those of them that the user has set
};

}  // namespace kvferry::ucx
