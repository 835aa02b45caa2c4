#pragma once

#include <map>
#include <string>

#include "engine/bench/trial_keys.h"
#include "test/support/engines.h"

namespace kvferry::test {

// One authority and one secret for all tests of a process.
inline const bench::TrialKeys& trial_keys() {
  static const std::unique_ptr<bench::TrialKeys> keys = must(bench::TrialKeys::create());
  return *keys;
}

inline AuthConfig auth_of(AuthMode mode) {
  return must(trial_keys().of(mode));
}

// What tells a program of docs/settings.md the same.
inline std::map<std::string, std::string> environment_of(const AuthConfig& auth) {
  std::string names;
  for (const std::string& name : auth.peer_names) names += (names.empty() ? "" : ",") + name;
  return {{"KVFERRY_AUTH", std::string(to_string(auth.mode))},
          {"KVFERRY_PSK_FILE", auth.psk_file},
          {"KVFERRY_TLS_CERT", auth.certificate_file},
          {"KVFERRY_TLS_KEY", auth.key_file},
          {"KVFERRY_TLS_CA", auth.ca_file},
          {"KVFERRY_TLS_PEERS", names}};
}

}  // namespace kvferry::test
