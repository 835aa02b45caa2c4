#pragma once

#include <memory>
#include <string>

#include "bootstrap/directory.h"
#include "bootstrap/parcel_control.h"
#include "bootstrap/worker_info.h"
#include "common/result.h"

namespace kvferry::bootstrap {

// bootstrap/client.h for callers without an event loop: readers, bindings, tools. It has a thread of its own. Calls may
// come from any number of threads; each returns within its timeout.
class BlockingClient {
 public:
  struct Config {
    std::string token;                           // for release
    Duration timeout = std::chrono::seconds(5);  // of a call, all its tries together
    std::string ca_file;                         // PEM: who vouches for https servers
  };
  static Result<std::unique_ptr<BlockingClient>> create(Config config);
  // REQUIRES: no call is in progress.
  ~BlockingClient();

  // URLs are "http[s]://host:port[/namespace]". What the calls mean: bootstrap/client.h.
  Result<std::shared_ptr<const std::vector<Registration>>> workers(const std::string& base);
  Result<std::shared_ptr<const WorkerInfo>> worker(const std::string& server);
  Result<ReleaseState> release(const std::string& base, const std::string& transfer_id, bool force);
  void saw(const std::string& engine_id, const std::string& address, uint64_t incarnation);

 private:
  struct Core;
  explicit BlockingClient(std::unique_ptr<Core> core);
  std::unique_ptr<Core> core_;
};

}  // namespace kvferry::bootstrap
