#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/config.h"
#include "common/log.h"

namespace kvferry {

namespace loopback {
class Hub;
}

// I6, DESIGN.md. About 1 KiB and 4 bytes a block id for a parcel; a full table refuses with `resource_exhausted`.
struct ParcelLimits {
  size_t parcels = 200'000;
  size_t claims_per_parcel = 4096;
  size_t waiting_per_reader = 4096;
  size_t waiting_claims = 65'536;  // of all readers
  size_t fetches_per_claim = 16;   // each reads anew; a reader of ours tries nine times
  size_t spans_per_claim = size_t{1} << 20;
  size_t kept_verdicts = 65'536;
  size_t tombstones = 200'000;
  Duration unknown_grace = std::chrono::seconds(30);  // a claim for an id that nobody announced
  Duration reader_grace = std::chrono::seconds(5);    // a reader without a session
  Duration verdict_life = std::chrono::seconds(120);  // the longest settle deadline
  Duration longest_lease = std::chrono::hours(1);     // with extensions, from publish on
};

// Who may talk (docs/security.md).
enum class AuthMode : uint8_t {
  open,  // whoever reaches the port
  psk,   // whoever has the secret of a file: TLS 1.3 with that key and a fresh Diffie-Hellman exchange
  mtls,  // whoever has a certificate of a named authority for a named peer: TLS 1.3
};
KVFERRY_API std::string_view to_string(AuthMode mode);

struct AuthConfig {
  AuthMode mode = AuthMode::open;
  // psk: one secret a line, at least 16 bytes each; empty lines and those with a '#' in front are skipped. The first is
  // what this engine dials with, all are accepted.
  std::string psk_file;
  // mtls: PEM files, of the chain that this engine shows, its key, and the authorities that peers' must come from.
  std::string certificate_file;
  std::string key_file;
  std::string ca_file;
  // mtls: DNS or URI names of which a peer's certificate must carry one; "*.x" stands for one label before ".x".
  std::vector<std::string> peer_names;
  // The kernel makes the records that are sent, where it can (module tls).
  bool kernel_tls = true;

  Status validate() const;
};

// What becomes of an engine that is to use RDMA ("rdma" among its fabrics) where that cannot be had. With no other
// fabric it is refused in any case.
enum class WithoutRdma : uint8_t {
  refuse,
  warn,   // uses the others; one line of the log
  quiet,  // likewise, and describe() alone tells
};

// One setting of the library that a plug-in's fabric is made of, by that library's name for it: {"ucx", "TLS", "rc"}.
struct FabricSetting {
  std::string fabric;
  std::string name;
  std::string value;
};

// Everything an engine can be told, once, at its start. docs/settings.md lists the variables that set it.
struct EngineConfig {
  // The name that peers see; made up when empty.
  std::string engine_id;
  // host:port, numeric; port 0 takes a free one.
  std::string listen = "127.0.0.1:0";
  AuthConfig auth;
  // In mode open, an address that others can reach is refused unless this says that it is meant.
  bool allow_open = false;
  // Regions are private whatever is asked for, and only parcels' tickets open them, over fabrics on which this engine
  // moves the bytes itself: tcp alone.
  bool strict = false;
  // Fabrics that may be used, best first. A name that this build or machine does not have is an error. "rdma" stands
  // for the first plug-in that works by an RDMA device of this machine (ucx, ofi), and may come to nothing.
  std::vector<std::string> fabrics = {"local", "tcp"};
  WithoutRdma without_rdma = WithoutRdma::warn;
  // Where the plug-ins of further fabrics lie; empty: beside the library, or in the folder lib beside its own.
  std::string plugin_folder;
  std::vector<FabricSetting> fabric_settings;
  // Numeric hosts on which the fabrics of plug-ins listen: an address of each RDMA device that is to be used, in the
  // same order on all machines. Empty: the host of `listen`; for "rdma" an address of a device where that has none.
  std::vector<std::string> rdma_hosts;

  Duration default_timeout = std::chrono::seconds(30);  // of a transfer that sets no deadline
  Duration connect_timeout = std::chrono::seconds(5);   // from dialling to the answer to hello
  Duration heartbeat = std::chrono::seconds(1);
  int missed_heartbeats = 3;  // then a peer is lost

  int copy_threads = -1;   // of the local fabric; -1: one less than the cores, at most 3
  int bulk_lanes = 2;      // of the tcp fabric to each peer, besides the one for small transfers
  std::string congestion;  // TCP_CONGESTION of all sockets; empty: the system's

  // Memory of GPUs. The driver is loaded when the first of it is registered; a library that is not there makes the kind
  // not viable, which registering and describe() say. `cuda_gather` is how small scattered blocks move: auto, kernel,
  // batch or single.
  std::string cuda_driver = "libcuda.so.1";
  std::string cuda_gather = "auto";

  // Limits (I6). Memory of a full engine is bounded by their sum:
  size_t max_transfers = 65536;                      // in flight; about 1 KiB each and 60 bytes a pair
  size_t max_pairs = 1 << 20;                        // of one transfer
  size_t max_regions = 65536;                        // of this engine, and of each peer; about 200 bytes each, and keys
  size_t max_peers = 16384;                          // that this engine dials; about 10 KiB each
  size_t max_connections = 0;                        // that came, lanes too; 0: 3/4 of the process's descriptors
  size_t max_sessions = 16384;                       // that dial this engine; about 20 KiB each
  size_t max_sessions_per_host = 2048;               // of them
  size_t max_session_bytes = size_t{256} << 20;      // of frames under way in all sessions of one direction
  size_t max_notifications = 65536;                  // that the application has not taken
  size_t max_notification_bytes = size_t{64} << 20;  // of them all
  size_t staging_bytes = size_t{64} << 20;           // for memory that the CPU cannot touch
  ParcelLimits parcels;

  // For tests: lets the fabric "loopback" be named, between the engines of one process that hold the same hub.
  std::shared_ptr<loopback::Hub> loopback;
  // For tests: where the kernel tells of RDMA devices.
  std::string sys = "/sys";

  std::shared_ptr<Logger> logger;  // null: warnings on standard error

  // Defaults, changed by KVFERRY_LISTEN, KVFERRY_FABRICS, KVFERRY_TIMEOUT and the others of docs/settings.md.
  KVFERRY_API static Result<EngineConfig> from_environment(const Environment& environment);
  Status validate() const;
};

constexpr size_t kMaxRails = 8;
constexpr std::string_view kRdma = "rdma";  // among the fabrics

// Those that are in every build; the others come as plug-ins (engine/fabric/plugin/).
bool is_builtin_fabric(std::string_view name);
// The fabrics for which a plug-in exists, in some build or other.
const std::vector<std::string>& known_plugins();

}  // namespace kvferry
