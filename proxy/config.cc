#include "proxy/config.h"

#include <sys/stat.h>
#include <yaml-cpp/yaml.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <system_error>

#include "common/secret.h"
#include "http/message.h"

namespace kvferry::proxy {
namespace {

constexpr uint16_t kBootstrapPort = 8998;
constexpr size_t kLargestConfig = size_t{1} << 20;
constexpr char kJoin = '|';  // between a prefiller's URL and its bootstrap port, in one argument

Error config_error(std::string message, std::string cause = {}) {
  return {ErrorCode::invalid_argument, std::move(message), std::move(cause), "", ""};
}

bool names_port(const std::string& text) {
  return text == "none" || text == "None" ||
         (!text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; }));
}

// "--prefill URL 8998" -> "--prefill=URL|8998": the port is a word of its own that may be missing.
std::vector<std::string> join_prefill(const std::vector<std::string>& arguments) {
  std::vector<std::string> joined;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    const bool spaced = word == "--prefill" && i + 1 < arguments.size();
    if (!spaced && !word.starts_with("--prefill=")) {
      joined.push_back(word);
      continue;
    }
    std::string value = spaced ? arguments[++i] : word.substr(10);
    if (i + 1 < arguments.size() && names_port(arguments[i + 1])) value += kJoin + arguments[++i];
    joined.push_back("--prefill=" + value);
  }
  return joined;
}

// A key itself, not the name of its file.
bool holds_key(const std::string& flag) {
  constexpr std::array<std::string_view, 4> kKeys = {
      "--api-key=", "--bootstrap-token=", "--require-key=", "--admin-key="};
  return std::any_of(kKeys.begin(), kKeys.end(), [&](std::string_view key) {
    return flag.starts_with(key) && flag.size() > key.size() && flag[key.size()] != '@';
  });
}

// A YAML mapping as the flags that say the same. Lists repeat the flag; a prefiller may be {url, bootstrap_port}.
Result<std::string> text_of_file(const std::string& path) {
  const std::string what = "cannot read the config file " + path;
  std::string text(kLargestConfig + 1, '\0');
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (file.is_open()) file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.is_open() || file.bad()) return config_error(what, std::generic_category().message(errno));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kLargestConfig) return config_error(what, "it has more than 1 MiB");
  return text;
}

Result<std::vector<std::string>> flags_of_file(const std::string& path) {
  KVF_ASSIGN_OR_RETURN(const std::string text, text_of_file(path));
  std::vector<std::string> flags;
  const auto add = [&](const std::string& name, const YAML::Node& value) {
    std::string word;
    if (value.IsMap()) {
      word = value["url"].as<std::string>();
      if (value["bootstrap_port"]) word += kJoin + value["bootstrap_port"].as<std::string>();
    } else {
      word = value.as<std::string>();
      if (name == "prefill") std::replace(word.begin(), word.end(), ' ', kJoin);
    }
    flags.push_back("--" + name + "=" + word);
  };
  try {
    const YAML::Node root = YAML::Load(text);
    if (!root.IsMap()) return config_error("the config file " + path + " is not a mapping");
    for (const auto& entry : root) {
      std::string name = entry.first.as<std::string>();
      std::replace(name.begin(), name.end(), '_', '-');
      if (!entry.second.IsSequence()) {
        add(name, entry.second);
        continue;
      }
      for (const auto& item : entry.second) add(name, item);
    }
  } catch (const YAML::Exception& problem) {
    return config_error("cannot read the config file " + path, problem.what());
  }
  struct stat facts {};
  const bool wide = ::stat(path.c_str(), &facts) == 0 && (facts.st_mode & (S_IRWXG | S_IRWXO)) != 0;
  if (wide && std::any_of(flags.begin(), flags.end(), holds_key))
    return config_error("others may use the config file " + path + ", and it holds a key",
                        "chmod 600 it, or name a file of the key: @path");
  return flags;
}

// The flags as text, before they are checked.
struct RawFlags {
  std::vector<std::string> prefill, decode;
  std::vector<std::string> prefiller_hosts, prefiller_ports, decoder_hosts, decoder_ports;
  std::string connector = "mooncake", policy = "least_loaded", config_file, log_level = "info";
  std::string max_body = "128M", max_bodies = "1G";
  std::vector<std::pair<Duration*, std::string>> durations;
};

void add_duration(CLI::App& app, RawFlags& raw, const std::string& name, Duration& target, const std::string& help) {
  raw.durations.emplace_back(&target, "");
  auto& text = raw.durations.back().second;
  app.add_option(name, text, help)->type_name("DURATION");
}

void add_backends(CLI::App& app, RawFlags& raw) {
  const auto list = [&](const std::string& names, std::vector<std::string>& target, const std::string& help) {
    app.add_option(names, target, help)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)->delimiter(',');
  };
  app.add_option("--prefill", raw.prefill, "Prefiller: URL [BOOTSTRAP_PORT|none], repeatable");
  app.add_option("--decode", raw.decode, "Decoder: URL, repeatable");
  list("--prefiller-host,--prefiller-hosts", raw.prefiller_hosts, "Older form of --prefill: hosts");
  list("--prefiller-port,--prefiller-ports", raw.prefiller_ports, "Older form of --prefill: ports");
  list("--decoder-host,--decoder-hosts", raw.decoder_hosts, "Older form of --decode: hosts");
  list("--decoder-port,--decoder-ports", raw.decoder_ports, "Older form of --decode: ports");
  app.add_option("--connector", raw.connector, "mooncake, kvferry, nixl or lmcache");
  app.add_option("--policy", raw.policy, "round_robin, least_loaded, prefix or session");
}

void add_scalars(CLI::App& app, ProxyConfig& config, RawFlags& raw) {
  app.add_option("--config", raw.config_file, "YAML file with the same names");
  app.add_option("--host", config.host, "Address to listen on");
  app.add_option("--port", config.port, "Port to listen on");
  app.add_option("--admin-host", config.admin_host, "Address of the admin server");
  app.add_option("--admin-port", config.admin_port, "Port of the admin server; -1: none");
  app.add_option("--min-prompt-bytes", config.min_prompt_bytes, "Shorter prompts go to the decoder alone");
  app.add_option("--prefix-entries", config.prefix_entries, "Bound of the prefix table, about 120 bytes each");
  app.add_option("--local-prefill", config.local_prefill, "Without a prefiller let the decoder compute the prompt");
  app.add_option("--max-concurrent", config.max_concurrent, "Requests at a time; 0: as many as connections");
  app.add_option("--max-queue", config.max_queue, "Requests that wait for a place; more get 429");
  app.add_option("--max-connections", config.max_connections, "Client connections; 0: from the descriptor limit");
  app.add_option("--max-per-address", config.max_per_address, "Connections of one client address; 0: no limit");
  app.add_option("--max-body", raw.max_body, "Largest request body")->type_name("SIZE");
  app.add_option("--max-bodies", raw.max_bodies, "All request bodies together, then 503; 0: no limit")
      ->type_name("SIZE");
  app.add_option("--max-head", config.max_head, "Largest request head in bytes");
  app.add_option("--api-key", config.api_key, "Key for the backends, or @file");
  app.add_option("--bootstrap-token", config.bootstrap_token,
                 "Token of the bootstrap servers, or @file; default: the key");
  app.add_option("--require-key", config.require_key, "Key asked of clients, or @file");
  app.add_option("--admin-key", config.admin_key, "Key of the admin server, or @file");
  app.add_option("--tls-certificate", config.tls_certificate, "PEM chain: the front speaks TLS");
  app.add_option("--tls-key", config.tls_key, "PEM private key");
  app.add_flag("--admin-tls", config.admin_tls, "The admin server speaks TLS with the same certificate");
  app.add_option("--bootstrap-ca", config.bootstrap_ca, "PEM authorities: bootstrap servers are asked by https");
  app.add_option("--access-log", config.access_log, "A path, - for standard output, or none");
  app.add_flag("--debug-headers", config.debug_headers, "Answer with X-KVFerry-Prefill and -Decode");
  app.add_option("--canary-model", config.canary_model, "Model of the canary requests");
  app.add_option("--log-level", raw.log_level, "debug, info, warning, error or off");
}

void add_durations(CLI::App& app, ProxyConfig& config, RawFlags& raw) {
  raw.durations.reserve(24);  // the options keep pointers into it
  add_duration(app, raw, "--lease", config.lease, "Until the first byte; default VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT");
  add_duration(app, raw, "--prefill-timeout", config.prefill_timeout, "Until a prefiller has answered");
  add_duration(app, raw, "--prefiller-wait", config.prefiller_wait, "Without local prefill: for a prefiller to return");
  add_duration(app, raw, "--connect-timeout", config.connect_timeout, "Until a backend is connected");
  add_duration(app, raw, "--stream-idle-timeout", config.stream_idle_timeout, "Between two pieces of an answer");
  add_duration(app, raw, "--upstream-idle", config.upstream_idle, "How long unused connections to backends are kept");
  add_duration(app, raw, "--health-interval", config.health_interval, "Between health probes");
  add_duration(app, raw, "--slow-start", config.slow_start, "Until a new backend gets its full share");
  add_duration(app, raw, "--drain-limit", config.drain_limit, "How long SIGTERM lets requests finish");
  add_duration(app, raw, "--queue-timeout", config.queue_timeout, "Longest wait for a place; then 503");
  add_duration(app, raw, "--client-idle", config.client_idle, "How long idle client connections are kept");
  add_duration(app, raw, "--client-stall", config.client_stall, "How long a client may read nothing");
  add_duration(app, raw, "--canary-interval", config.canary_interval, "Between canary requests; 0: none");
}

Result<PrefillAddress> prefill_address(const std::string& text, Dialect dialect) {
  const size_t join = text.find(kJoin);
  PrefillAddress address;
  KVF_ASSIGN_OR_RETURN(address.url, parse_backend_url(text.substr(0, join)));
  const bool has_bootstrap = dialect == Dialect::mooncake || dialect == Dialect::kvferry;
  if (join == std::string::npos) {
    if (has_bootstrap) address.bootstrap_port = kBootstrapPort;
    return address;
  }
  const std::string port = text.substr(join + 1);
  if (port == "none" || port == "None") return address;
  if (!names_port(port) || port.size() > 5 || std::stoul(port) == 0 || std::stoul(port) > 65535) {
    return config_error("not a bootstrap port: " + port);
  }
  address.bootstrap_port = static_cast<uint16_t>(std::stoul(port));
  return address;
}

// hosts x ports as the older proxies pair them: one by one, or one of them for all.
Result<std::vector<std::string>> paired(std::vector<std::string> hosts, std::vector<std::string> ports) {
  if (hosts.empty() && !ports.empty()) hosts.emplace_back("127.0.0.1");
  if (ports.empty() && !hosts.empty()) ports.emplace_back("8000");
  while (hosts.size() < ports.size() && hosts.size() == 1) hosts.push_back(hosts.front());
  while (ports.size() < hosts.size() && ports.size() == 1) ports.push_back(ports.front());
  if (hosts.size() != ports.size()) return config_error("the lists of hosts and ports do not match");
  std::vector<std::string> urls;
  for (size_t i = 0; i < hosts.size(); ++i) {
    const bool v6 = hosts[i].find(':') != std::string::npos && !hosts[i].starts_with('[');
    urls.push_back("http://" + (v6 ? "[" + hosts[i] + "]" : hosts[i]) + ":" + ports[i]);
  }
  return urls;
}

Status fill_backends(const RawFlags& raw, ProxyConfig& config) {
  const auto dialect = parse_dialect(raw.connector);
  if (!dialect) return config_error("unknown connector: " + raw.connector);
  config.dialect = *dialect;
  const auto policy = parse_policy(raw.policy);
  if (!policy) return config_error("unknown policy: " + raw.policy);
  config.policy = *policy;
  std::vector<std::string> prefill = raw.prefill;
  std::vector<std::string> decode = raw.decode;
  KVF_ASSIGN_OR_RETURN(const auto older_prefill, paired(raw.prefiller_hosts, raw.prefiller_ports));
  KVF_ASSIGN_OR_RETURN(const auto older_decode, paired(raw.decoder_hosts, raw.decoder_ports));
  prefill.insert(prefill.end(), older_prefill.begin(), older_prefill.end());
  decode.insert(decode.end(), older_decode.begin(), older_decode.end());
  for (const std::string& text : prefill) {
    KVF_ASSIGN_OR_RETURN(auto address, prefill_address(text, config.dialect));
    config.prefill.push_back(std::move(address));
  }
  for (const std::string& text : decode) {
    KVF_ASSIGN_OR_RETURN(auto url, parse_backend_url(text));
    config.decode.push_back(std::move(url));
  }
  return {};
}

Status check(ProxyConfig& config, const RawFlags& raw, const Environment& environment) {
  KVF_ASSIGN_OR_RETURN(config.lease, environment.duration("VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT", config.lease));
  config.prefill_timeout = config.lease;
  for (const auto& [target, text] : raw.durations) {
    if (text.empty()) continue;
    KVF_ASSIGN_OR_RETURN(*target, parse_duration(text));
  }
  KVF_ASSIGN_OR_RETURN(config.max_body, parse_size(raw.max_body));
  KVF_ASSIGN_OR_RETURN(config.max_bodies, parse_size(raw.max_bodies));
  if (config.max_bodies > 0 && config.max_bodies < config.max_body) {
    return config_error("--max-bodies is less than --max-body: the largest bodies would never be taken");
  }
  KVF_ASSIGN_OR_RETURN(config.log_level, parse_log_level(raw.log_level));
  for (std::string* secret : {&config.api_key, &config.bootstrap_token, &config.require_key, &config.admin_key}) {
    KVF_ASSIGN_OR_RETURN(*secret, read_secret(*secret));
    if (!http::valid_field_value(*secret)) return config_error("a key may not hold control characters");
  }
  KVF_RETURN_IF_ERROR(fill_backends(raw, config));
  if (config.admin_tls && config.tls_certificate.empty()) return config_error("--admin-tls needs --tls-certificate");
  if (config.tls_certificate.empty() && !config.tls_key.empty())
    return config_error("--tls-key needs --tls-certificate");
  if (config.canary_interval > Duration(0) && config.canary_model.empty()) {
    return config_error("--canary-interval needs --canary-model");
  }
  return {};
}

}  // namespace

Result<http::Url> parse_backend_url(std::string_view text) {
  KVF_ASSIGN_OR_RETURN(http::Url url, http::parse_url(text));
  if (url.secure) return Error{ErrorCode::unsupported, "https backends are not supported", "", url.authority(), ""};
  return url;
}

Result<ParsedConfig> parse_config(const std::vector<std::string>& arguments, const Environment& environment) {
  ParsedConfig parsed;
  RawFlags raw;
  CLI::App app{"kvferry-proxy: one OpenAI-compatible door for prefillers and decoders"};
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  add_scalars(app, parsed.config, raw);
  add_durations(app, parsed.config, raw);
  add_backends(app, raw);
  std::vector<std::string> words = join_prefill(arguments);
  for (size_t i = 0; i < arguments.size(); ++i) {
    const bool spaced = arguments[i] == "--config" && i + 1 < arguments.size();
    if (!spaced && !arguments[i].starts_with("--config=")) continue;
    KVF_ASSIGN_OR_RETURN(auto flags, flags_of_file(spaced ? arguments[i + 1] : arguments[i].substr(9)));
    words.insert(words.begin(), flags.begin(), flags.end());
    break;
  }
  std::reverse(words.begin(), words.end());  // CLI11 takes its words from the back
  try {
    app.parse(words);
  } catch (const CLI::CallForHelp&) {
    parsed.help = app.help();
    return parsed;
  } catch (const CLI::ParseError& problem) {
    return config_error(problem.what());
  }
  KVF_RETURN_IF_ERROR(check(parsed.config, raw, environment));
  return parsed;
}

}  // namespace kvferry::proxy
