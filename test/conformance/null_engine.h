#pragma once

#include <string>

#include "test/support/engines.h"

namespace kvferry::test {

// An engine over a fabric that moves nothing.
inline EngineConfig null_config(const std::string& name) {
  EngineConfig config;
  config.engine_id = name;
  config.fabrics = {"ucx"};
  config.plugin_folder = KVF_NULL_FABRIC_FOLDER;
  config.logger = make_null_logger();
  config.missed_heartbeats = 60;  // a machine may stand still for a while
  return config;
}

}  // namespace kvferry::test
