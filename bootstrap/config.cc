#include "bootstrap/config.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "common/secret.h"

namespace kvferry::bootstrap {
namespace {

// The flags as text, before they are checked.
struct RawFlags {
  std::string token, plain_ttl = "0", max_ttl = "60s", query_ttl = "500ms", idle_timeout = "30s";
  std::string head_timeout = "10s", body_timeout = "10s", log_level = "info";
};

void declare(CLI::App& app, ServerSettings& server, RawFlags& raw) {
  app.add_option("--host", server.host, "The only address to listen on")->capture_default_str();
  app.add_option("--port", server.port, "Default: $VLLM_MOONCAKE_BOOTSTRAP_PORT or 8998; 0 takes a free one");
  app.add_option("--token", raw.token, "Asked, as a bearer token, of everything that changes state; @file reads it");
  app.add_option("--tls-certificate", server.certificate_file, "PEM chain: the server speaks TLS only");
  app.add_option("--tls-key", server.key_file, "PEM private key");
  app.add_option("--tls-ca", server.ca_file, "PEM authorities of the workers' servers, for their https");
  app.add_option("--query-ttl", raw.query_ttl, "How long clients may keep answers")->capture_default_str();
  app.add_option("--max-ttl", raw.max_ttl, "Longest time that a worker may stay silent")->capture_default_str();
  app.add_option("--plain-ttl", raw.plain_ttl, "Forget workers that never renew (vLLM's own) after this; 0: never")
      ->capture_default_str();
  app.add_option("--max-namespaces", server.directory.namespaces, "Namespaces at once")->capture_default_str();
  app.add_option("--max-workers", server.directory.entries, "Registered workers at once")->capture_default_str();
  app.add_option("--max-connections", server.max_connections, "Further ones get 503")->capture_default_str();
  app.add_option("--max-per-address", server.max_per_address, "Connections of one client address; 0: no limit")
      ->capture_default_str();
  app.add_option("--idle-timeout", raw.idle_timeout, "Of a connection between requests")->capture_default_str();
  app.add_option("--head-timeout", raw.head_timeout, "For a request's head")->capture_default_str();
  app.add_option("--body-timeout", raw.body_timeout, "For a request's body")->capture_default_str();
  app.add_option("--log-level", raw.log_level, "debug, info, warning, error, off")->capture_default_str();
}

Status read_duration(const std::string& flag, const std::string& text, Duration low, Duration& out) {
  auto parsed = parse_duration(text);
  if (!parsed.ok() || *parsed < low) {
    return Error{ErrorCode::invalid_argument, flag + " is no usable duration", text, "", ""};
  }
  out = *parsed;
  return {};
}

Status check(const RawFlags& raw, ProgramConfig& config) {
  constexpr Duration kLeast = std::chrono::milliseconds(1);
  ServerSettings& server = config.server;
  KVF_RETURN_IF_ERROR(read_duration("--query-ttl", raw.query_ttl, Duration(0), server.query_ttl));
  KVF_RETURN_IF_ERROR(read_duration("--max-ttl", raw.max_ttl, server.directory.min_ttl, server.directory.max_ttl));
  KVF_RETURN_IF_ERROR(read_duration("--plain-ttl", raw.plain_ttl, Duration(0), server.directory.plain_ttl));
  KVF_RETURN_IF_ERROR(read_duration("--idle-timeout", raw.idle_timeout, kLeast, server.idle_timeout));
  KVF_RETURN_IF_ERROR(read_duration("--head-timeout", raw.head_timeout, kLeast, server.head_timeout));
  KVF_RETURN_IF_ERROR(read_duration("--body-timeout", raw.body_timeout, kLeast, server.body_timeout));
  if (server.directory.namespaces == 0 || server.directory.entries == 0 || server.max_connections == 0) {
    return Error{ErrorCode::invalid_argument, "limits must be positive", "", "", ""};
  }
  KVF_ASSIGN_OR_RETURN(server.token, read_secret(raw.token));
  if (server.certificate_file.empty() && !server.key_file.empty()) {
    return Error{ErrorCode::invalid_argument, "--tls-key needs --tls-certificate", "", "", ""};
  }
  KVF_ASSIGN_OR_RETURN(config.log_level, parse_log_level(raw.log_level));
  return {};
}

}  // namespace

std::string ProgramConfig::to_string() const {
  const auto ms = [](Duration span) { return span / std::chrono::milliseconds(1); };
  return fmt::format(
      "host={} port={} tls={} token={} query_ttl={}ms max_ttl={}ms plain_ttl={}ms max_namespaces={} max_workers={} "
      "max_connections={} max_per_address={} idle_timeout={}ms head_timeout={}ms body_timeout={}ms",
      server.host, server.port, server.certificate_file.empty() ? "no" : "yes", server.token.empty() ? "none" : "set",
      ms(server.query_ttl), ms(server.directory.max_ttl), ms(server.directory.plain_ttl), server.directory.namespaces,
      server.directory.entries, server.max_connections, server.max_per_address, ms(server.idle_timeout),
      ms(server.head_timeout), ms(server.body_timeout));
}

Result<ParsedConfig> parse_config(const std::vector<std::string>& arguments, const Environment& environment) {
  ParsedConfig parsed;
  RawFlags raw;
  KVF_ASSIGN_OR_RETURN(const int64_t port, environment.integer(kPortVariable, kDefaultPort, 0, 65535));
  parsed.config.server.port = static_cast<uint16_t>(port);
  CLI::App app("Tells decoders and proxies where the workers of prefillers are", "kvferry-bootstrap");
  declare(app, parsed.config.server, raw);
  try {
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
    app.parse(std::move(reversed));
  } catch (const CLI::CallForHelp&) {
    parsed.help = app.help();
    return parsed;
  } catch (const CLI::ParseError& problem) {
    return Error{ErrorCode::invalid_argument, "cannot read the command line", problem.what(), "", ""};
  }
  KVF_RETURN_IF_ERROR(check(raw, parsed.config));
  return parsed;
}

}  // namespace kvferry::bootstrap
