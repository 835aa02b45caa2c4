#include "engine/config.h"

#include <algorithm>
#include <cctype>

#include "engine/io/address.h"

namespace kvferry {
namespace {

Result<AuthMode> parse_auth_mode(const std::string& name) {
  for (const AuthMode mode : {AuthMode::open, AuthMode::psk, AuthMode::mtls})
    if (name == to_string(mode)) return mode;
  return Error{ErrorCode::invalid_argument, "KVFERRY_AUTH must be open, psk or mtls, not \"" + name + "\""};
}

// A key that is named and not used would be a door that somebody believes to be shut: it sets the mode.
Result<AuthConfig> auth_from_environment(const Environment& environment) {
  AuthConfig auth;
  auth.psk_file = environment.get("KVFERRY_PSK_FILE").value_or("");
  auth.certificate_file = environment.get("KVFERRY_TLS_CERT").value_or("");
  auth.key_file = environment.get("KVFERRY_TLS_KEY").value_or("");
  auth.ca_file = environment.get("KVFERRY_TLS_CA").value_or("");
  auth.peer_names = split_list(environment.get("KVFERRY_TLS_PEERS").value_or(""));
  KVF_ASSIGN_OR_RETURN(auth.kernel_tls, environment.boolean("KVFERRY_KERNEL_TLS", auth.kernel_tls));
  if (const auto name = environment.get("KVFERRY_AUTH")) {
    KVF_ASSIGN_OR_RETURN(auth.mode, parse_auth_mode(*name));
  } else if (!auth.psk_file.empty()) {
    auth.mode = AuthMode::psk;
  } else if (!auth.certificate_file.empty() || !auth.key_file.empty() || !auth.ca_file.empty()) {
    auth.mode = AuthMode::mtls;
  }
  return auth;
}

// Those with our prefix, KVFERRY_UCX_TLS, over the library's own where it does not read those itself: UCX_TLS.
void add_fabric_settings(const Environment& environment, std::vector<FabricSetting>& settings) {
  for (const std::string& fabric : known_plugins()) {
    std::string prefix = fabric + "_";
    std::transform(prefix.begin(), prefix.end(), prefix.begin(),
                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    std::vector<std::string> all = {"KVFERRY_" + prefix};
    if (fabric == "ucx") all.insert(all.begin(), prefix);
    for (const std::string& full : all)
      for (const auto& [name, value] : environment.with_prefix(full)) settings.push_back({fabric, name, value});
  }
}

Status check_names(const std::vector<std::string>& fabrics, bool has_loopback) {
  const auto is_one_of = [](const std::string& name, const std::vector<std::string>& names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  for (const std::string& name : fabrics) {
    if (name == "loopback" ? has_loopback : is_builtin_fabric(name) || name == kRdma) continue;
    if (name == "loopback" || !is_one_of(name, known_plugins()))
      return Error{ErrorCode::unsupported, "unknown fabric \"" + name + "\"; there are local, tcp, rdma, ucx, ofi"};
    if (is_one_of(std::string(kRdma), fabrics))
      return Error{ErrorCode::invalid_argument, "fabric \"rdma\" stands for ucx or ofi: name it, or these"};
  }
  if (std::count(fabrics.begin(), fabrics.end(), kRdma) > 1)
    return Error{ErrorCode::invalid_argument, "fabric \"rdma\" is named twice"};
  return {};
}

Status check_rails(const std::vector<std::string>& hosts) {
  if (hosts.size() > kMaxRails)
    return Error{ErrorCode::invalid_argument,
                 "KVFERRY_RDMA_HOST names more than " + std::to_string(kMaxRails) + " addresses"};
  for (size_t i = 0; i < hosts.size(); ++i) {
    if (!to_socket_address(Address{hosts[i], 0}))
      return Error{ErrorCode::invalid_argument, "KVFERRY_RDMA_HOST: \"" + hosts[i] + "\" is no numeric address"};
    if (std::find(hosts.begin(), hosts.begin() + static_cast<std::ptrdiff_t>(i), hosts[i]) !=
        hosts.begin() + static_cast<std::ptrdiff_t>(i))
      return Error{ErrorCode::invalid_argument, "KVFERRY_RDMA_HOST names " + hosts[i] + " twice"};
  }
  return {};
}

}  // namespace

bool is_builtin_fabric(std::string_view name) {
  return name == "local" || name == "tcp" || name == "loopback";
}

const std::vector<std::string>& known_plugins() {
  static const std::vector<std::string> names = {"ucx", "ofi"};
  return names;
}

std::string_view to_string(AuthMode mode) {
  switch (mode) {
    case AuthMode::open:
      return "open";
    case AuthMode::psk:
      return "psk";
    case AuthMode::mtls:
      return "mtls";
  }
  return "?";
}

Status AuthConfig::validate() const {
  const bool has_psk = !psk_file.empty();
  const bool has_tls = !certificate_file.empty() || !key_file.empty() || !ca_file.empty() || !peer_names.empty();
  if ((has_psk && mode != AuthMode::psk) || (has_tls && mode != AuthMode::mtls))
    return Error{ErrorCode::invalid_argument, "auth mode " + std::string(to_string(mode)) +
                                                  " does not use the keys or certificates that are named: set "
                                                  "KVFERRY_AUTH to the mode that is meant, or name none"};
  if (mode == AuthMode::psk && !has_psk)
    return Error{ErrorCode::invalid_argument, "auth mode psk needs a file with the shared secret: KVFERRY_PSK_FILE"};
  if (mode == AuthMode::mtls && (certificate_file.empty() || key_file.empty() || ca_file.empty() || peer_names.empty()))
    return Error{ErrorCode::invalid_argument,
                 "auth mode mtls needs KVFERRY_TLS_CERT, KVFERRY_TLS_KEY, KVFERRY_TLS_CA and KVFERRY_TLS_PEERS"};
  return {};
}

Result<EngineConfig> EngineConfig::from_environment(const Environment& environment) {
  EngineConfig config;
  config.engine_id = environment.get("KVFERRY_ENGINE_ID").value_or(config.engine_id);
  config.listen = environment.get("KVFERRY_LISTEN").value_or(config.listen);
  config.cuda_driver = environment.get("KVFERRY_CUDA_DRIVER").value_or(config.cuda_driver);
  config.cuda_gather = environment.get("KVFERRY_CUDA_GATHER").value_or(config.cuda_gather);
  config.congestion = environment.get("KVFERRY_CONGESTION").value_or(config.congestion);
  if (const auto names = environment.get("KVFERRY_FABRICS")) config.fabrics = split_list(*names);
  config.plugin_folder = environment.get("KVFERRY_PLUGINS").value_or(config.plugin_folder);
  if (const auto hosts = environment.get("KVFERRY_RDMA_HOST")) config.rdma_hosts = split_list(*hosts);
  add_fabric_settings(environment, config.fabric_settings);
  KVF_ASSIGN_OR_RETURN(config.auth, auth_from_environment(environment));
  KVF_ASSIGN_OR_RETURN(config.strict, environment.boolean("KVFERRY_STRICT", config.strict));
  KVF_ASSIGN_OR_RETURN(config.allow_open, environment.boolean("KVFERRY_ALLOW_OPEN", config.allow_open));
  KVF_ASSIGN_OR_RETURN(config.default_timeout, environment.duration("KVFERRY_TIMEOUT", config.default_timeout));
  KVF_ASSIGN_OR_RETURN(config.connect_timeout, environment.duration("KVFERRY_CONNECT_TIMEOUT", config.connect_timeout));
  KVF_ASSIGN_OR_RETURN(config.heartbeat, environment.duration("KVFERRY_HEARTBEAT", config.heartbeat));
  KVF_ASSIGN_OR_RETURN(const int64_t missed,
                       environment.integer("KVFERRY_MISSED_HEARTBEATS", config.missed_heartbeats, 1, 1000));
  config.missed_heartbeats = static_cast<int>(missed);
  KVF_ASSIGN_OR_RETURN(const int64_t threads, environment.integer("KVFERRY_COPY_THREADS", config.copy_threads, -1, 64));
  config.copy_threads = static_cast<int>(threads);
  KVF_ASSIGN_OR_RETURN(const int64_t lanes, environment.integer("KVFERRY_BULK_LANES", config.bulk_lanes, 1, 8));
  config.bulk_lanes = static_cast<int>(lanes);
  KVF_ASSIGN_OR_RETURN(config.staging_bytes, environment.size("KVFERRY_STAGING_BYTES", config.staging_bytes));
  KVF_ASSIGN_OR_RETURN(config.parcels.longest_lease,
                       environment.duration("KVFERRY_LONGEST_LEASE", config.parcels.longest_lease));
  KVF_ASSIGN_OR_RETURN(const LogLevel level, parse_log_level(environment.get("KVFERRY_LOG").value_or("warning")));
  config.logger = make_stderr_logger(level, "kvferry");
  return config;
}

Status EngineConfig::validate() const {
  KVF_ASSIGN_OR_RETURN(const Address address, parse_address(listen, false));
  KVF_RETURN_IF_ERROR(auth.validate());
  if (auth.mode == AuthMode::open && !address.is_loopback() && !allow_open)
    return Error{ErrorCode::permission_denied,
                 "refusing to listen on " + listen +
                     " without authentication: whoever reaches that port could read and write registered memory; "
                     "set KVFERRY_AUTH=psk and KVFERRY_PSK_FILE (or KVFERRY_AUTH=mtls and its certificates), listen on "
                     "a loopback address, or set KVFERRY_ALLOW_OPEN=1 (EngineConfig::allow_open) if the network is "
                     "trusted"};
  if (fabrics.empty())
    return Error{ErrorCode::invalid_argument, "no fabric is named; choose from local, tcp, rdma, ucx, ofi"};
  KVF_RETURN_IF_ERROR(check_names(fabrics, loopback != nullptr));
  KVF_RETURN_IF_ERROR(check_rails(rdma_hosts));
  if (strict && std::find(fabrics.begin(), fabrics.end(), "tcp") == fabrics.end())
    return Error{ErrorCode::unsupported, "a strict engine uses the fabric tcp alone: name it"};
  if (heartbeat < std::chrono::milliseconds(10))
    return Error{ErrorCode::invalid_argument, "KVFERRY_HEARTBEAT must be at least 10ms"};
  if (engine_id.size() > 256) return Error{ErrorCode::invalid_argument, "engine id is longer than 256 bytes"};
  return {};
}

}  // namespace kvferry
