#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "bootstrap/directory.h"
#include "bootstrap/parcel_control.h"
#include "bootstrap/ports.h"
#include "bootstrap/worker_info.h"
#include "common/log.h"
#include "common/result.h"

namespace kvferry::bootstrap {

// Everything a bootstrap server can be told, in a worker's process or as kvferry-bootstrap.
struct ServerSettings {
  std::string host = "127.0.0.1";  // the only address that is listened on
  uint16_t port = kDefaultPort;    // 0: any free one
  std::string token;               // asked of everything that changes state, and shown to other servers
  // PEM files: with a certificate the server speaks TLS only; with authorities it asks other servers by https, and
  // believes those that they vouch for.
  std::string certificate_file;
  std::string key_file;
  std::string ca_file;
  bool keeps_directory = true;  // false: of workers that are registered elsewhere
  // Where this process's worker is registered: "http[s]://host:port[/namespace]"; empty: nowhere.
  std::string base_url;

  Directory::Limits directory;
  Duration query_ttl = std::chrono::milliseconds(500);  // how long clients may keep answers
  Duration worker_ttl = std::chrono::seconds(5);        // of this process's own registration
  Duration worker_heartbeat = std::chrono::seconds(1);
  Duration release_limit = std::chrono::milliseconds(1500);  // for a DELETE to reach all ranks
  // So long after its start a server without parcels of its own may not know all workers again, and acknowledges no
  // DELETE for them.
  Duration gathering = std::chrono::seconds(5);
  // Limits (I6). A connection costs about 2 KiB idle and at most 8 KiB of body and 16 KiB of head.
  size_t max_connections = 16384;
  size_t max_per_address = 0;  // connections of one client address; 0: no limit
  Duration idle_timeout = std::chrono::seconds(30);
  Duration head_timeout = std::chrono::seconds(10);
  Duration body_timeout = std::chrono::seconds(10);
  std::shared_ptr<Logger> logger;  // null: warnings on standard error
};

// A bootstrap server on a thread of its own. Thread-safe.
class Server {
 public:
  // `parcels` may be null. Error unavailable: the address cannot be listened on; it names who holds the port.
  static Result<std::unique_ptr<Server>> create(ServerSettings settings, ParcelControl* parcels = nullptr);
  // Takes the worker's registration back (waiting half a second for it at most), ends all connections and the thread.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  uint16_t port() const;

  // The worker of this process, told to clients from now on and registered at the base. Repeat it when something has
  // changed, the layout for instance.
  void set_worker(WorkerInfo worker);

  // Prometheus' text format; the same as GET /metrics.
  std::string metrics() const;

 private:
  struct Core;
  explicit Server(std::unique_ptr<Core> core);
  std::unique_ptr<Core> core_;
};

}  // namespace kvferry::bootstrap
