#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <utility>

#include "test/conformance/plugin_cases.h"
#include "test/support/engines.h"

namespace kvferry::test {

inline EngineConfig plugin_config(const PluginCase& tested) {
  EngineConfig config;
  config.fabrics = {tested.fabric};
  config.heartbeat = std::chrono::milliseconds(200 * plugin_slower());
  config.missed_heartbeats = 100;  // a machine that stands still for seconds ends no session
  config.logger = make_null_logger();
  use_transports(config, tested.fabric, tested.transports);
  return config;
}

// The first that is under test of that fabric.
inline const PluginCase* case_of(std::string_view fabric) {
  for (const PluginCase& each : plugin_cases())
    if (each.fabric == fabric) return &each;
  return nullptr;
}

inline std::string why_not(EngineConfig config) {
  const auto engine = Engine::create(std::move(config));
  return engine.ok() ? "it was made" : engine.error().to_string();
}

}  // namespace kvferry::test
