#pragma once

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>

#include "common/log.h"
#include "common/metrics.h"
#include "engine/io/loop.h"
#include "engine/io/stream.h"
#include "engine/session/preface.h"

namespace kvferry {

// The engine's port: tells sessions, lanes and strangers apart. Connections that say nothing cost a descriptor for a
// bounded time and delay nobody. On loop only.
class Acceptor {
 public:
  struct Options {
    size_t max_pending = 512;                     // connections without a preface
    Duration patience = std::chrono::seconds(5);  // for the preface
  };
  using SessionCame = std::function<void(std::unique_ptr<Stream>)>;
  using LaneCame = std::function<void(std::unique_ptr<Stream>, const LanePreface&)>;

  Acceptor(Loop& loop, Options options, std::shared_ptr<Logger> logger, Counter& strangers, SessionCame session_came,
           LaneCame lane_came);
  ~Acceptor();

  Status listen(Network& network, const Address& address);
  Address address() const { return listener_->address(); }

 private:
  class Pending;
  void accepted(std::unique_ptr<Stream> stream);
  void settled(Pending& pending);
  void refuse(Pending& pending, const Error& error);

  Loop& loop_;
  const Options options_;
  const std::shared_ptr<Logger> logger_;
  Counter& strangers_;
  const SessionCame session_came_;
  const LaneCame lane_came_;
  std::unordered_map<Pending*, std::shared_ptr<Pending>> pending_;
  std::unique_ptr<Listener> listener_;
};

}  // namespace kvferry
