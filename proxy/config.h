#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/config.h"
#include "common/log.h"
#include "common/result.h"
#include "http/url.h"
#include "proxy/legs.h"
#include "proxy/route.h"

namespace kvferry::proxy {

struct PrefillAddress {
  http::Url url;
  std::optional<uint16_t> bootstrap_port;  // on the same host; none: the dialect needs no bootstrap server
};

// Everything that the program can be told, by flags or by a YAML file with the same names (docs/proxy.md).
struct ProxyConfig {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;
  std::string admin_host = "127.0.0.1";
  int admin_port = 8009;  // -1: none
  std::vector<PrefillAddress> prefill;
  std::vector<http::Url> decode;
  Dialect dialect = Dialect::mooncake;
  Policy policy = Policy::least_loaded;
  size_t min_prompt_bytes = 64;  // shorter prompts go to the decoder alone
  size_t prefix_entries = 200000;
  bool local_prefill = true;                           // with no prefiller left, let the decoder compute the prompt
  Duration prefiller_wait = std::chrono::seconds(10);  // without local_prefill: for one that is being restarted

  Duration lease = std::chrono::seconds(480);  // until the decoder's first byte; how long releases are retried
  Duration prefill_timeout = std::chrono::seconds(480);
  Duration connect_timeout = std::chrono::seconds(2);
  Duration stream_idle_timeout = std::chrono::seconds(300);
  Duration upstream_idle = std::chrono::seconds(4);  // vLLM closes idle connections after 5 s
  Duration health_interval = std::chrono::seconds(1);
  Duration slow_start = std::chrono::seconds(10);
  Duration drain_limit = std::chrono::seconds(30);
  Duration queue_timeout = std::chrono::seconds(30);
  Duration client_idle = std::chrono::seconds(75);
  Duration client_stall = std::chrono::seconds(60);
  size_t max_concurrent = 0;  // requests; 0: as many as connections
  size_t max_queue = 1000;
  size_t max_connections = 0;  // 0: from the descriptor limit
  size_t max_per_address = 0;  // 0: no limit
  uint64_t max_body = 128ULL << 20;
  uint64_t max_bodies = 1ULL << 30;  // of all requests together, until they are answered; 0: no limit
  size_t max_head = 64 << 10;

  std::string api_key;          // put on requests to backends
  std::string bootstrap_token;  // put on releases; empty: the API key
  std::string require_key;      // asked of clients
  std::string admin_key;
  std::string tls_certificate;
  std::string tls_key;
  bool admin_tls = false;    // the admin server shows the same certificate
  std::string bootstrap_ca;  // bootstrap servers are spoken to by https, and believed if one of these vouches for them
  std::string access_log = "-";  // a path, "-" for standard output, "none"
  bool debug_headers = false;
  Duration canary_interval{0};  // 0: no canary
  std::string canary_model;
  LogLevel log_level = LogLevel::info;
};

// Of a server of models: those are spoken to in plain HTTP, so https is refused.
Result<http::Url> parse_backend_url(std::string_view text);

// `arguments` without the program's name. Flags win over the file. `help` set: print it and leave.
struct ParsedConfig {
  ProxyConfig config;
  std::string help;
};
Result<ParsedConfig> parse_config(const std::vector<std::string>& arguments, const Environment& environment);

}  // namespace kvferry::proxy
