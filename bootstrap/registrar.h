#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <string>

#include "bootstrap/directory.h"
#include "common/random.h"
#include "http/deadlines.h"
#include "http/tls.h"
#include "http/url.h"

namespace kvferry::bootstrap {

// Keeps one worker registered at a base server: registers, sends heartbeats, registers again when the server has
// forgotten it (restarted), and keeps trying while the server is away or a younger process has the rank. Everything
// happens on the loop.
class Registrar {
 public:
  struct Config {
    http::Url base;  // with the namespace as its path
    std::string token;
    std::shared_ptr<http::TlsContext> trust;  // for https
    Duration ttl = std::chrono::seconds(5);
    Duration heartbeat = std::chrono::seconds(1);  // how soon a restarted server knows everybody again
    Duration attempt = std::chrono::seconds(1);    // for one request
    Duration first_retry = std::chrono::milliseconds(50);
    Duration longest_retry = std::chrono::seconds(1);
  };
  enum class State { trying, registered, superseded };

  // `changed` is called on the loop with each new state and, for `trying` and `superseded`, the reason.
  Registrar(boost::asio::io_context& loop, http::Deadlines& deadlines, Random& random, Config config,
            std::function<void(State, const std::string&)> changed);
  ~Registrar();
  Registrar(const Registrar&) = delete;
  Registrar& operator=(const Registrar&) = delete;

  // Registers, or registers anew when something has changed. `began`: when this process started.
  void keep(const Registration& registration, TimePoint began);
  // Stops, and takes the registration back if the server answers in time.
  boost::asio::awaitable<void> leave(Duration limit);

 private:
  struct Task;
  const std::shared_ptr<Task> task_;
};

}  // namespace kvferry::bootstrap
