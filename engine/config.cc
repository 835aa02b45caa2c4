#include "engine/config.h"

#include <algorithm>

#include "engine/io/address.h"

namespace kvferry {

Result<EngineConfig> EngineConfig::from_environment(const Environment& environment) {
  EngineConfig config;
  config.engine_id = environment.get("KVFERRY_ENGINE_ID").value_or(config.engine_id);
  config.listen = environment.get("KVFERRY_LISTEN").value_or(config.listen);
  config.congestion = environment.get("KVFERRY_CONGESTION").value_or(config.congestion);
  if (const auto names = environment.get("KVFERRY_FABRICS")) config.fabrics = split_list(*names);
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
  if (!address.is_loopback() && !allow_open)
    return Error{ErrorCode::permission_denied,
                 "refusing to listen on " + listen +
                     " without authentication: whoever reaches that port could read and write registered memory; "
                     "listen on a loopback address, or set KVFERRY_ALLOW_OPEN=1 (EngineConfig::allow_open) if the "
                     "network is trusted"};
  if (fabrics.empty()) return Error{ErrorCode::invalid_argument, "no fabric is named; choose from local, tcp"};
  for (const std::string& name : fabrics)
    if (name != "local" && name != "tcp" && !(name == "loopback" && loopback))
      return Error{ErrorCode::unsupported, "unknown fabric \"" + name + "\"; this build has local, tcp"};
  if (heartbeat < std::chrono::milliseconds(10))
    return Error{ErrorCode::invalid_argument, "KVFERRY_HEARTBEAT must be at least 10ms"};
  if (engine_id.size() > 256) return Error{ErrorCode::invalid_argument, "engine id is longer than 256 bytes"};
  return {};
}

}  // namespace kvferry
