#include "engine/fabric/ucx/settings.h"

#include <sys/utsname.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <vector>

#include "engine/fabric/ucx/device.h"
#include "engine/fabric/ucx/early.h"
#include "engine/fabric/ucx/fabric.h"

namespace kvferry::ucx {
namespace {

constexpr const char* kMust = "RCACHE_ENABLE";  // of ours, what every version has to take

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> out;
  std::istringstream in(list);
  for (std::string word; std::getline(in, word, ',');) out.push_back(word);
  return out;
}

// UCX 1.13 compares names given by a program with those of a component's own settings without the component's prefix,
// and passes over what it does not find, in silence; later versions want the prefix, and refuse what they do not find.
std::vector<std::string> keys_of(const std::string& name) {
  for (const char* prefix : {"IB_"})
    if (name.rfind(prefix, 0) == 0) return {name, name.substr(std::strlen(prefix))};
  return {name};
}

// Since Linux 5.12 a child is given copies of pinned pages. Before, they have to be kept from it, whole pages at a
// time: where memory of the heap is registered, a child dies of what lies beside it.
bool fork_copies_pinned_pages() {
  utsname system{};
  int major = 0;
  int minor = 0;
  if (::uname(&system) != 0 || std::sscanf(system.release, "%d.%d", &major, &minor) != 2) return false;
  return major > 5 || (major == 5 && minor >= 12);
}

bool is_rdma(const std::string& transport) {
  for (const char* family : {"rc", "dc", "ud", "ib"})
    if (transport.rfind(family, 0) == 0) return true;
  return false;
}

// Move bytes between a GPU and the host within a process, and none between processes.
bool stays_inside(const std::string& transport) {
  return transport == "cuda_copy" || transport == "gdr_copy";
}

}  // namespace

Settings Settings::of(const kvf_open_params& params) {
  Settings out;
  out.values_ = {
      // Queue pairs and nothing that would stand in for them: without an RDMA device this fabric is not viable.
      {"TLS", "rc"},
      // A cache would keep registrations that were taken back, and serve peers by them: a device's in 1.13, UCX's own
      // later.
      {"IB_REG_METHODS", "direct"},
      {kMust, "n"},
      {"IB_FORK_INIT", fork_copies_pinned_pages() ? "n" : "try"},
      // Each installs hooks into the process's mmap and munmap.
      {"MEMTYPE_CACHE", "n"},
  };
  // A host that vanished is told after some 5 s, like a session's. By UCX's own 7 tries it takes longer, and some
  // devices never count to 7.
  if (!environment_has("UCX_RC_RETRY_COUNT")) out.values_.emplace("RC_RETRY_COUNT", "4");
  for (size_t i = 0; i < params.setting_count; ++i) {
    out.values_[params.settings[i].name] = params.settings[i].value;
    out.asked_.insert(params.settings[i].name);
  }
  // Of several devices the one at which this fabric shall be reached, and no other.
  if (const std::string device = rdma_port_at(params.host); out.only_rdma() && !device.empty())
    out.values_.emplace("NET_DEVICES", device);
  return out;
}

ucs_status_t Settings::read(ucp_config_t** out, kvf_text why) const {
  ucs_status_t status = ucp_config_read(nullptr, nullptr, out);
  if (status != UCS_OK) {
    say(why, "UCX cannot read its configuration", status, KVF_FAILED);
    return status;
  }
  for (const auto& [name, value] : values_) {
    bool taken = false;
    for (const std::string& key : keys_of(name)) {
      const ucs_status_t here = ucp_config_modify(*out, key.c_str(), value.c_str());
      if (here == UCS_OK)
        taken = true;
      else
        status = here;
    }
    // Of ours, later versions do not know all, nor does a build that lacks a transport know the transport's.
    if (taken || (asked_.count(name) == 0 && name != kMust)) continue;
    say(why, "UCX does not take " + name + "=" + value, status, KVF_FAILED);
    ucp_config_release(*out);
    return status;
  }
  return UCS_OK;
}

std::string Settings::device() const {
  const auto found = values_.find("NET_DEVICES");
  if (found == values_.end() || found->second.find(',') != std::string::npos) return "";
  return found->second.substr(0, found->second.find(':'));
}

bool Settings::only_rdma() const {
  const auto names = split(transports());
  return std::all_of(names.begin(), names.end(),
                     [](const std::string& name) { return is_rdma(name) || stays_inside(name); }) &&
         std::any_of(names.begin(), names.end(), is_rdma);
}

bool Settings::uses_shared_memory() const {
  const auto names = split(transports());
  return std::any_of(names.begin(), names.end(), [](const std::string& name) {
    return !is_rdma(name) && !stays_inside(name) && name != "tcp" && name != "self";
  });
}

}  // namespace kvferry::ucx
