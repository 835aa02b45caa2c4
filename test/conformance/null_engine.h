#pragma once

#include <string>

#include "test/support/engines.h"
#include "test/support/fabric_folders.h"

namespace kvferry::test {

// An engine over a fabric that moves nothing.
inline EngineConfig null_config(const std::string& name) {
  EngineConfig config;
  config.engine_id = name;
  config.fabrics = {"ucx"};
  config.plugin_folder = null_fabric_folder();
  config.logger = make_null_logger();
  config.missed_heartbeats = 60;  // a machine may stand still for a while
  return config;
}

}  // namespace kvferry::test
