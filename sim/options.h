#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/config.h"
#include "common/log.h"
#include "engine/config.h"
#include "sim/serving.h"

namespace kvferry::sim {

enum class ServerRole : uint8_t { prefill, decode, both };

// Everything that kvferry-sim is told, once.
struct SimOptions {
  ServerRole role = ServerRole::both;
  std::string host = "127.0.0.1";
  uint16_t port = 8100;
  bool hands_over = true;  // false: neither gives nor takes KV
  uint16_t bootstrap_port = 8998;
  std::string bootstrap_url;  // a directory outside this process
  Duration lease = std::chrono::seconds(480);
  Duration request_timeout = std::chrono::seconds(600);
  Duration drain_limit = std::chrono::seconds(5);
  EngineConfig engine;  // of each rank
  LogLevel log_level = LogLevel::info;
  std::string model_name = "kvferry-sim";
  ModelConfig model;
  size_t tp = 1;
  ServingConfig serving;

  // One prompt, answered locally instead of serving.
  std::optional<std::string> generate;
  SamplingParams sampling;
  bool json = false;  // the answer as /v1/completions would give it
};

// What the command line says, or what main() is to print and exit with (help and version: 0).
struct ParsedOptions {
  std::optional<SimOptions> options;
  std::string message;
  int exit_code = 0;
};
ParsedOptions parse_options(int argc, const char* const* argv, const Environment& environment = Environment({}));

}  // namespace kvferry::sim
