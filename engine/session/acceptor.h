#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>

#include "common/metrics.h"
#include "engine/io/loop.h"
#include "engine/io/stream.h"
#include "engine/session/complaints.h"
#include "engine/session/preface.h"

namespace kvferry {

// The engine's port: tells sessions, lanes and strangers apart. Connections that say nothing cost a descriptor for a
// bounded time and delay nobody. On loop only.
class Acceptor {
 public:
  struct Options {
    // Connections without a preface, and with TLS in the middle of its handshake; about 40 KiB each. One more costs the
    // oldest of the host that has most its place: who is honest needs it for a few round trips, who is silent for ever.
    size_t max_pending = 512;
    // Of all kinds, lanes too: each costs a descriptor, which the rest of the process needs as well. 0: three quarters
    // of what the process may have. One host gets three quarters of them.
    size_t max_connections = 0;
    Duration patience = std::chrono::seconds(5);  // for handshake and preface
    std::string plain_refusal;                    // said in mode open to a peer that begins with TLS
  };
  using SessionCame = std::function<void(std::unique_ptr<Stream>)>;
  using LaneCame = std::function<void(std::unique_ptr<Stream>, const LanePreface&)>;

  Acceptor(Loop& loop, Options options, Complaints& complaints, Counter& strangers, SessionCame session_came,
           LaneCame lane_came);
  ~Acceptor();

  Status listen(Network& network, const Address& address);
  Address address() const { return listener_->address(); }

 private:
  class Pending;
  struct Census {
    size_t all = 0;
    std::unordered_map<std::string, size_t> by_host;
  };
  // Refuses, or counts for as long as what it returns lives.
  Result<std::shared_ptr<const void>> find_place(const std::string& address);
  void accepted(std::unique_ptr<Stream> stream);
  void settled(Pending& pending);
  void refuse(Pending& pending, const Error& error);
  void drop_one();

  Loop& loop_;
  const Options options_;
  Complaints& complaints_;
  Counter& strangers_;
  const SessionCame session_came_;
  const LaneCame lane_came_;
  std::map<uint64_t, std::shared_ptr<Pending>> pending_;  // by the order in which they came
  uint64_t next_number_ = 1;
  const std::shared_ptr<Census> census_ = std::make_shared<Census>();
  std::unique_ptr<Listener> listener_;
};

}  // namespace kvferry
