#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <set>

#include "common/clock.h"

namespace kvferry::proxy {

// Work beside the requests: coroutines that refer to parts of the proxy, which waits for them before those go. On the
// loop; outlives what it runs.
class Background {
 public:
  explicit Background(boost::asio::io_context& loop) : loop_(loop) {}

  void run(boost::asio::awaitable<void> work);
  // False: it is time to end. For run() alone.
  boost::asio::awaitable<bool> sleep(Duration span);
  // Wakes all that sleep; what is asked of others meanwhile ends by its own deadline, of some seconds.
  void end();
  size_t running() const { return running_; }

 private:
  boost::asio::io_context& loop_;
  std::set<boost::asio::steady_timer*> asleep_;
  size_t running_ = 0;
  bool ending_ = false;
};

}  // namespace kvferry::proxy
