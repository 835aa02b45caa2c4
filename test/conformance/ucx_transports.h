#pragma once

#include <fmt/format.h>

#include <string>
#include <vector>

#include "common/config.h"
#include "engine/config.h"
#include "engine/fabric/plugin/library.h"
#include "test/support/sanitized.h"

namespace kvferry::test {

// The transports of UCX under test. Those that exist on every machine emulate RMA: the owner's engine moves the bytes.
// (UCX takes tcp for the second, too, as long as shared memory is not told to handle errors: docs/rdma.md.) Where there
// is an RDMA device, KVFERRY_TEST_UCX_TLS names its transport instead, and KVFERRY_TEST_HOST its address.
inline const std::vector<const char*>& ucx_transports() {
  static const auto of_a_device = Environment::of_process().get("KVFERRY_TEST_UCX_TLS");
  static const std::vector<const char*> all = [] {
    if (of_a_device) return std::vector<const char*>{of_a_device->c_str()};
    return std::vector<const char*>{"tcp,self", "posix,tcp,self"};
  }();
  return all;
}

inline bool has_rdma_device() {
  return Environment::of_process().get("KVFERRY_TEST_UCX_TLS").has_value();
}

// A guest's CPU is a translated one.
inline int ucx_slower() {
  return has_rdma_device() ? 10 * kSlower : kSlower;
}

// Where the fabric listens; empty: where the engine does.
inline std::string rdma_host() {
  return Environment::of_process().get("KVFERRY_TEST_HOST").value_or("");
}

// Part of a test's name.
inline std::string name_of_transports(const std::string& transports) {
  return transports.empty() ? std::string() : fmt::format("_{}", transports.substr(0, transports.find(',')));
}

inline void use_transports(EngineConfig& config, const std::string& transports) {
  if (transports.empty()) return;
  config.fabric_settings.push_back({"ucx", "TLS", transports});
  config.rdma_host = rdma_host();
}

// Empty when the fabric can be tested.
inline std::string why_no_fabric(const std::string& fabric) {
  if (is_builtin_fabric(fabric)) return "";
  if (kThreadsSanitized) return "a plug-in's library is not built for ThreadSanitizer, which does not see into it";
  const auto library = plugin::Library::load(fabric, "");
  return library.ok() ? "" : library.error().to_string();
}

}  // namespace kvferry::test
