#pragma once

#include <string>
#include <vector>

#include "bootstrap/server.h"
#include "common/config.h"
#include "common/log.h"
#include "common/result.h"

namespace kvferry::bootstrap {

// Everything that the program kvferry-bootstrap can be told (docs/bootstrap.md).
struct ProgramConfig {
  ServerSettings server;
  LogLevel log_level = LogLevel::info;

  // One line, without secrets.
  std::string to_string() const;
};

// `arguments` without the program's name. Flags win over the environment. `help` set: print it and leave.
struct ParsedConfig {
  ProgramConfig config;
  std::string help;
};
Result<ParsedConfig> parse_config(const std::vector<std::string>& arguments, const Environment& environment);

}  // namespace kvferry::bootstrap
