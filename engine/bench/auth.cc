#include "engine/bench/auth.h"

#include <cstdlib>
#include <utility>

#include "common/config.h"

namespace kvferry::bench {

Result<std::unique_ptr<TrialKeys>> use_trial_keys(AuthMode mode) {
  if (mode == AuthMode::open) return std::unique_ptr<TrialKeys>();
  KVF_ASSIGN_OR_RETURN(auto keys, TrialKeys::create());
  KVF_ASSIGN_OR_RETURN(const AuthConfig auth, keys->of(mode));
  const std::pair<const char*, std::string> settings[] = {
      {"KVFERRY_AUTH", std::string(to_string(mode))},
      {"KVFERRY_PSK_FILE", auth.psk_file},
      {"KVFERRY_TLS_CERT", auth.certificate_file},
      {"KVFERRY_TLS_KEY", auth.key_file},
      {"KVFERRY_TLS_CA", auth.ca_file},
      {"KVFERRY_TLS_PEERS", mode == AuthMode::mtls ? "engine.trial" : ""}};
  for (const auto& [name, value] : settings) ::setenv(name, value.c_str(), 1);
  return keys;
}

Result<EngineConfig> base_config() {
  KVF_ASSIGN_OR_RETURN(EngineConfig settings, EngineConfig::from_environment(Environment::of_process()));
  EngineConfig config;
  config.auth = std::move(settings.auth);
  config.plugin_folder = std::move(settings.plugin_folder);
  config.fabric_settings = std::move(settings.fabric_settings);
  config.rdma_hosts = std::move(settings.rdma_hosts);
  return config;
}

}  // namespace kvferry::bench
