#include "engine/fabric/ofi/settings.h"

namespace kvferry::ofi {
namespace {

// Providers of connections alone, over which ofi_rxm makes endpoints that are not connected.
constexpr const char* kLayered = ";ofi_rxm";

}  // namespace

Settings Settings::of(const kvf_open_params& params) {
  Settings out;
  for (size_t i = 0; i < params.setting_count; ++i) {
    const std::string name = params.settings[i].name;
    if (name == "PROVIDER")
      out.provider_ = params.settings[i].value;
    else
      out.variables_[name] = params.settings[i].value;
  }
  if (out.provider_ == "tcp" || out.provider_ == "verbs") out.provider_ += kLayered;
  return out;
}

bool Settings::uses_sockets() const {
  return provider_.find(kLayered) != std::string::npos;
}

bool Settings::is_rdma() const {
  return provider_ == std::string("verbs") + kLayered;
}

}  // namespace kvferry::ofi
