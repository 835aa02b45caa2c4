#include "engine/fabric/ucx/settings.h"

#include <algorithm>
#include <sstream>
#include <vector>

#include "engine/fabric/ucx/fabric.h"

namespace kvferry::ucx {
namespace {

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> out;
  std::istringstream in(list);
  for (std::string word; std::getline(in, word, ',');) out.push_back(word);
  return out;
}

bool is_rdma(const std::string& transport) {
  for (const char* family : {"rc", "dc", "ud", "ib"})
    if (transport.rfind(family, 0) == 0) return true;
  return false;
}

}  // namespace

Settings Settings::of(const kvf_open_params& params) {
  Settings out;
  out.values_ = {
      // Queue pairs and nothing that would stand in for them: without an RDMA device this fabric is not viable.
      {"TLS", "rc"},
      // A cache would keep registrations that were taken back, and serve peers by them.
      {"IB_REG_METHODS", "direct"},
      {"RCACHE_ENABLE", "n"},
      // Each installs hooks into the process's mmap and munmap.
      {"MEMTYPE_CACHE", "n"},
      // Only so do shared memory's transports tell of a dead peer.
      {"POSIX_ERROR_HANDLING", "y"},
  };
  for (size_t i = 0; i < params.setting_count; ++i) out.values_[params.settings[i].name] = params.settings[i].value;
  return out;
}

ucs_status_t Settings::read(ucp_config_t** out, kvf_text why) const {
  ucs_status_t status = ucp_config_read(nullptr, nullptr, out);
  if (status != UCS_OK) {
    say(why, "UCX cannot read its configuration", status, KVF_FAILED);
    return status;
  }
  for (const auto& [name, value] : values_) {
    status = ucp_config_modify(*out, name.c_str(), value.c_str());
    if (status == UCS_OK) continue;
    say(why, "UCX does not take " + name + "=" + value, status, KVF_FAILED);
    ucp_config_release(*out);
    return status;
  }
  return UCS_OK;
}

bool Settings::only_rdma() const {
  const auto names = split(transports());
  return std::all_of(names.begin(), names.end(), is_rdma);
}

bool Settings::uses_shared_memory() const {
  const auto names = split(transports());
  return std::any_of(names.begin(), names.end(),
                     [](const std::string& name) { return !is_rdma(name) && name != "tcp" && name != "self"; });
}

}  // namespace kvferry::ucx
