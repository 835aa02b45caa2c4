#pragma once

#include <fmt/format.h>

#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "common/config.h"
#include "engine/config.h"
#include "engine/fabric/plugin/library.h"
#include "test/support/fabric_folders.h"
#include "test/support/sanitized.h"

namespace kvferry::test {

// A plug-in's fabric, and what of its library is under test: UCX's transports, libfabric's provider.
struct PluginCase {
  const char* fabric;
  const char* transports;
};
inline void PrintTo(const PluginCase& c, std::ostream* out) {
  *out << c.fabric << " " << c.transports;
}

inline bool has_rdma_device() {
  const Environment& environment = Environment::of_process();
  return environment.get("KVFERRY_TEST_UCX_TLS") || environment.get("KVFERRY_TEST_OFI_PROVIDER");
}

// Where there is an RDMA device, KVFERRY_TEST_UCX_TLS or KVFERRY_TEST_OFI_PROVIDER names what drives it, and
// KVFERRY_TEST_HOST its address. What exists on every machine emulates RMA: the owner's engine moves the bytes.
inline const std::vector<PluginCase>& plugin_cases() {
  static const auto ucx_of_a_device = Environment::of_process().get("KVFERRY_TEST_UCX_TLS");
  static const auto ofi_of_a_device = Environment::of_process().get("KVFERRY_TEST_OFI_PROVIDER");
  static const std::vector<PluginCase> all = [] {
    std::vector<PluginCase> out;
    if (ucx_of_a_device) out.push_back({"ucx", ucx_of_a_device->c_str()});
    if (ofi_of_a_device) out.push_back({"ofi", ofi_of_a_device->c_str()});
    if (!out.empty()) return out;
    return std::vector<PluginCase>{{"ucx", "tcp,self"}, {"ofi", "tcp"}};
  }();
  return all;
}

// Not a transport of the library: a NIC of the tests' own, which reaches the memory of their GPUs
// (test/support/nic_fabric).
inline constexpr std::string_view kNic = "nic";

// A guest's CPU is a translated one.
inline int plugin_slower() {
  return has_rdma_device() ? 10 * kSlower : kSlower;
}

// The setting that chooses them, by the library's name and as a variable of ours.
inline std::string transports_setting(std::string_view fabric) {
  return fabric == "ucx" ? "TLS" : "PROVIDER";
}
inline std::string transports_variable(std::string_view fabric) {
  return fabric == "ucx" ? "KVFERRY_UCX_TLS" : "KVFERRY_OFI_PROVIDER";
}

// Where the fabric listens; empty: where the engine does.
inline std::string rdma_host() {
  return Environment::of_process().get("KVFERRY_TEST_HOST").value_or("");
}

// Part of a test's name.
inline std::string name_of_transports(const std::string& transports) {
  return transports.empty() ? std::string() : fmt::format("_{}", transports.substr(0, transports.find(',')));
}

inline void use_transports(EngineConfig& config, const std::string& fabric, const std::string& transports) {
  if (transports.empty()) return;
  if (transports == kNic) {
    config.plugin_folder = nic_fabric_folder();
    return;
  }
  config.fabric_settings.push_back({fabric, transports_setting(fabric), transports});
  if (!rdma_host().empty()) config.rdma_hosts = {rdma_host()};
}

// libfabric's shared memory, in which a process that is stopped or killed may hold a lock that its peers wait for.
inline constexpr PluginCase kOfiSharedMemory = {"ofi", "shm"};

// And UCX's shared memory, which tells too little of peers that die (docs/rdma.md): for suites in which nobody does. It
// is taken for nothing unless it is told to.
inline std::vector<PluginCase> peaceful_plugin_cases() {
  std::vector<PluginCase> out = plugin_cases();
  if (!has_rdma_device()) {
    out.push_back({"ucx", "posix,tcp,self"});
    out.push_back(kOfiSharedMemory);
  }
  return out;
}
inline void use_shared_memory(EngineConfig& config, std::string_view transports) {
  if (transports.starts_with("posix")) config.fabric_settings.push_back({"ucx", "MM_ERROR_HANDLING", "y"});
}

// Empty when the fabric can be tested.
inline std::string why_no_fabric(const std::string& fabric, std::string_view transports = "") {
  if (is_builtin_fabric(fabric)) return "";
  // Each piece opens and closes protected pages, which ThreadSanitizer makes a matter of minutes.
  if (transports == kNic) return kThreadsSanitized ? "the NIC of the tests is too slow under ThreadSanitizer" : "";
  if (kThreadsSanitized) return "a plug-in's library is not built for ThreadSanitizer, which does not see into it";
  const auto library = plugin::Library::load(fabric, "");
  return library.ok() ? "" : library.error().to_string();
}

}  // namespace kvferry::test
