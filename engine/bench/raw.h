#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <atomic>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/bench/channel.h"
#include "engine/types.h"

namespace kvferry::bench {

// What the kernel itself gives: the limits that the product is measured against.

using Vectors = std::vector<iovec>;

// Asks the target's process for the blocks that a thread's plan names. 64 bytes, which is also what a ping is.
struct RawRequest {
  enum class Verb : uint32_t { ping = 0, read = 1, write = 2 };
  Verb verb = Verb::ping;
  uint32_t thread = 0;
  uint32_t part = 0;  // of the only block, cut into `parts`, each over its own connection
  uint32_t parts = 1;
  char padding[48] = {};
};
static_assert(sizeof(RawRequest) == 64);

// The target's side: one sleeping thread a connection.
class RawServer {
 public:
  static Result<std::unique_ptr<RawServer>> create(const std::string& host);
  ~RawServer();

  const std::string& address() const { return socket_.address; }
  // What requests mean from now on: the blocks by thread.
  void set_plan(std::vector<Vectors> plan);

 private:
  explicit RawServer(ListeningSocket socket) : socket_(std::move(socket)) {}
  void accept_all();
  void serve(int fd);
  Vectors planned(const RawRequest& request);

  const ListeningSocket socket_;
  std::mutex mutex_;
  std::vector<Vectors> plan_;         // GUARDED_BY(mutex_)
  std::list<UniqueFd> connections_;   // GUARDED_BY(mutex_)
  std::vector<std::thread> serving_;  // by the accepting thread, then by the destructor
  std::thread accepting_;
};

// The initiator's side. Each call is one sample; all of it is done when it returns.
Status raw_local(pid_t target, Operation operation, const Vectors& ours, const Vectors& theirs);
// A write ends with the target's one-byte answer.
Status raw_tcp(int fd, Operation operation, uint32_t thread, const Vectors& ours);
// Over several connections at once, an even part of the only block over each.
Status raw_tcp_parts(const std::vector<UniqueFd>& connections, Operation operation, const Vectors& ours);
Status raw_ping(int fd);
void raw_memcpy(Operation operation, const Vectors& ours, const Vectors& theirs);

}  // namespace kvferry::bench
