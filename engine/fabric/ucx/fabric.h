#pragma once

#include <ucp/api/ucp.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/fabric/plugin_abi.h"

// The ucx fabric: RMA by UCX's UCP layer. One context and one worker an engine; endpoints connected by sockaddr.

// A key of a peer's region, unpacked for one endpoint.
struct kvf_key {
  ucp_rkey_h rkey = nullptr;
};

struct kvf_memory {
  ucp_mem_h handle = nullptr;
  ucs_memory_type_t type = UCS_MEMORY_TYPE_HOST;
};

// A connection that this side dialled.
struct kvf_endpoint {
  kvf_fabric* fabric = nullptr;
  uint64_t token = 0;
  ucp_ep_h ep = nullptr;
  size_t in_flight = 0;                                  // operations that UCX has not ended
  std::vector<std::pair<uint64_t, const char*>> failed;  // that it has, and why: told when the endpoint is gone
  bool gone = false;                                     // closed, and what has failed is told with the last end
};

// One fabric opened for one engine. See plugin_abi.h for who may call what.
struct kvf_fabric {
 public:
  static int32_t open(const kvf_host& host, const kvf_open_params& params, kvf_fabric** out, kvf_facts& facts,
                      kvf_text why);
  ~kvf_fabric();

  int wake_fd() const { return wake_fd_; }
  int32_t arm();
  uint32_t progress();
  int32_t listen(kvf_text address, kvf_text why);
  // Ends that client's connection. True: nothing that came by it is applied any more.
  bool fence(uint64_t client);

  ucp_context_h context() const { return context_; }
  ucp_worker_h worker() const { return worker_; }
  const kvf_host& host() const { return host_; }

  // From any thread.
  int32_t map(const kvf_range& range, kvf_memory** out, kvf_text why);
  void unmap(kvf_memory* memory);

  // Closes an endpoint whatever its state, and waits until it is gone, with all that was on it, or `patience_ms` is
  // over (false). `later`: when it is gone after all; from within progress().
  bool close_endpoint(ucp_ep_h ep, uint32_t patience_ms, std::function<void()> later);

 private:
  // A peer's connection to this fabric.
  struct Guest {
    kvf_fabric* fabric = nullptr;
    ucp_ep_h ep = nullptr;
    bool lost = false;
  };
  explicit kvf_fabric(const kvf_host& host) : host_(host) {}
  // Progresses until the request has ended, or it is that late (UCS_INPROGRESS).
  ucs_status_t wait_for(ucs_status_ptr_t request, std::chrono::steady_clock::time_point until);
  void look_who_is_gone();
  void accept(ucp_conn_request_h request);
  void tend_guests();
  bool knows_cuda() const;
  bool dismiss(uint64_t client, std::unique_ptr<Guest> guest);

  const kvf_host host_;
  std::string host_name_;
  std::string transports_;
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  ucp_listener_h listener_ = nullptr;
  int wake_fd_ = -1;
  bool shared_memory_ = false;                // what a peer left there may be applied although its connection has ended
  std::vector<ucp_conn_request_h> requests_;  // came in progress(), answered after it
  std::map<uint64_t, std::unique_ptr<Guest>> guests_;  // by client
  std::set<uint64_t> unsure_;                          // whose connection did not end when it was to
  // Flushes of the worker that endpoints wait for which are closed and not gone.
  struct Closing {
    ucs_status_ptr_t flush = nullptr;
    std::function<void()> later;
  };
  std::vector<Closing> closing_;
  bool tending_ = false;
  std::mutex memory_mutex_;
  std::set<kvf_memory*> memory_;  // GUARDED_BY(memory_mutex_)
};

namespace kvferry::ucx {

// Writes "<what>: <UCX's words>" and returns `result`.
int32_t say(kvf_text why, std::string_view what, ucs_status_t status, int32_t result);

}  // namespace kvferry::ucx
