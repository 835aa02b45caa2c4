#pragma once

#include <fmt/format.h>

#include <string>

#include "engine/config.h"
#include "engine/fabric/plugin/library.h"
#include "test/support/sanitized.h"

namespace kvferry::test {

// Transports of UCX that exist on every machine. Both emulate RMA: the owner's engine moves the bytes. UCX takes tcp
// for the second, too, as long as shared memory is not told to handle errors (docs/rdma.md).
inline constexpr const char* kUcxTransports[] = {"tcp,self", "posix,tcp,self"};

// Part of a test's name.
inline std::string name_of_transports(const std::string& transports) {
  return transports.empty() ? std::string() : fmt::format("_{}", transports.substr(0, transports.find(',')));
}

inline void use_transports(EngineConfig& config, const std::string& transports) {
  if (!transports.empty()) config.fabric_settings.push_back({"ucx", "TLS", transports});
}

// Empty when the fabric can be tested.
inline std::string why_no_fabric(const std::string& fabric) {
  if (is_builtin_fabric(fabric)) return "";
  if (kThreadsSanitized) return "a plug-in's library is not built for ThreadSanitizer, which does not see into it";
  const auto library = plugin::Library::load(fabric, "");
  return library.ok() ? "" : library.error().to_string();
}

}  // namespace kvferry::test
