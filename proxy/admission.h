#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <cstddef>
#include <deque>
#include <memory>

#include "http/deadlines.h"
#include "http/event.h"
#include "http/server.h"
#include "proxy/metrics.h"

namespace kvferry::proxy {

// How many requests may run, and how many may wait for that. On the loop.
class Admission {
 public:
  struct Limits {
    size_t max_running = 0;  // 0: no limit
    size_t max_waiting = 1000;
    Duration max_wait = std::chrono::seconds(30);
  };
  enum class Verdict { admitted, full, waited_too_long, left };

  Admission(boost::asio::io_context& loop, http::Deadlines& deadlines, Metrics& metrics, Limits limits)
      : loop_(loop), deadlines_(deadlines), metrics_(metrics), limits_(limits) {}

  // In order of arrival; a client that leaves meanwhile gives its place in the queue back. An admitted request calls
  // leave() when it is over.
  boost::asio::awaitable<Verdict> enter(http::ResponseWriter& client);
  void leave();
  size_t running() const { return running_; }

 private:
  struct Waiter {
    http::Event woken;
    bool admitted = false;
  };
  // When the loop turns: one that ran inside of its predecessor's leave() would make the stack as deep as the queue.
  void wake(std::shared_ptr<Waiter> waiter);
  void show_queue();

  boost::asio::io_context& loop_;
  http::Deadlines& deadlines_;
  Metrics& metrics_;
  const Limits limits_;
  size_t running_ = 0;
  std::deque<std::shared_ptr<Waiter>> waiting_;
};

}  // namespace kvferry::proxy
