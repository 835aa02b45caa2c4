#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <memory>

#include "bootstrap/client.h"
#include "common/log.h"
#include "http/deadlines.h"
#include "proxy/backends.h"
#include "proxy/background.h"

namespace kvferry::proxy {

// Keeps the table of backends true: GET /health of each at an interval, and of prefillers the engine ids that their
// bootstrap server hands out now, so that a restarted one is known within one interval. On the loop.
class Health {
 public:
  Health(boost::asio::io_context& loop, Background& background, http::Deadlines& deadlines,
         bootstrap::Client& bootstrap, std::shared_ptr<Logger> log, Duration interval)
      : loop_(loop),
        background_(background),
        deadlines_(deadlines),
        bootstrap_(bootstrap),
        log_(std::move(log)),
        interval_(interval) {}

  // Probes it until it is removed or stop().
  void watch(std::shared_ptr<Backend> backend);
  void stop() { stopped_ = true; }

  // Asks for the engine ids now; callers that come meanwhile share one question. True if they are known.
  boost::asio::awaitable<bool> refresh(std::shared_ptr<Backend> backend);

 private:
  boost::asio::awaitable<void> run(std::shared_ptr<Backend> backend);
  boost::asio::awaitable<void> probe(std::shared_ptr<Backend> backend);
  void judge(Backend& backend, bool good);
  void learn(Backend& backend, const bootstrap::Workers& workers);

  boost::asio::io_context& loop_;
  Background& background_;
  http::Deadlines& deadlines_;
  bootstrap::Client& bootstrap_;
  const std::shared_ptr<Logger> log_;
  const Duration interval_;
  bool stopped_ = false;
};

}  // namespace kvferry::proxy
