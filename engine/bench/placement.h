#pragma once

#include <sched.h>
#include <sys/types.h>

namespace kvferry::bench {

// Keeps this process and another of this host on a core each while it lives. Two processes that answer each other need
// a few microseconds a round where the scheduler leaves them on one core, and several times that where an idle core has
// to be woken; its choice may differ between a product and its limit, and hold for seconds. Without two cores, or
// without the right to place the other process, nothing is done.
class Apart {
 public:
  explicit Apart(pid_t other);
  ~Apart();
  Apart(const Apart&) = delete;
  Apart& operator=(const Apart&) = delete;

 private:
  const pid_t other_;
  cpu_set_t before_{};  // of this process
  bool placed_ = false;
};

}  // namespace kvferry::bench
