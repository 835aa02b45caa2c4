#pragma once

#include <boost/asio/io_context.hpp>
#include <memory>

#include "common/log.h"
#include "common/random.h"
#include "common/result.h"
#include "http/deadlines.h"
#include "proxy/config.h"
#include "proxy/metrics.h"

namespace kvferry::proxy {

// The whole proxy on one event loop: its front, its admin server and everything between. The public face of this
// folder.
class Proxy {
 public:
  // Listens and starts probing; serves as long as the loop runs. The arguments must outlive it.
  static Result<std::unique_ptr<Proxy>> create(boost::asio::io_context& loop, http::Deadlines& deadlines,
                                               Random& random, std::shared_ptr<Logger> log, ProxyConfig config);
  ~Proxy();

  uint16_t port() const;
  uint16_t admin_port() const;  // 0: none
  const Metrics& metrics() const;

  // Takes no new connections, lets requests finish for `drain_limit`, then closes them, waits for the releases that
  // this causes (a few seconds at most), and calls `done`.
  void drain(std::function<void()> done);

 private:
  struct Core;
  explicit Proxy(std::unique_ptr<Core> core);
  std::unique_ptr<Core> core_;
};

}  // namespace kvferry::proxy
