#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <deque>
#include <memory>
#include <unordered_map>

#include "http/client.h"
#include "proxy/backends.h"

namespace kvferry::proxy {

// Connections to backends between two requests. Kept shorter than vLLM keeps them (5 s), and looked at before use; what
// still dies under a request is the caller's to repeat, once, if it was `reused` and nothing was answered. On the loop.
class Pool {
 public:
  struct Limits {
    Duration idle = std::chrono::seconds(4);
    Duration connect_timeout = std::chrono::seconds(2);
    size_t max_idle = 512;  // per backend (I6)
  };
  Pool(boost::asio::io_context& loop, http::Deadlines& deadlines, Limits limits);

  struct Lease {
    std::unique_ptr<http::ClientConnection> connection;
    bool reused = false;
  };
  // A kept connection if there is one and `fresh` is false, else a new one.
  boost::asio::awaitable<Result<Lease>> take(Backend& backend, bool fresh);
  // Keeps it if another request may use it.
  void give_back(const Backend& backend, std::unique_ptr<http::ClientConnection> connection);
  void forget(const Backend& backend) { idle_.erase(backend.id); }
  void clear() { idle_.clear(); }
  size_t idle() const;

 private:
  struct Kept {
    std::unique_ptr<http::ClientConnection> connection;
    TimePoint since;
  };
  void prune();

  boost::asio::io_context& loop_;
  http::Deadlines& deadlines_;
  const Limits limits_;
  std::unordered_map<uint64_t, std::deque<Kept>> idle_;  // by backend; newest last
  http::Deadline pruning_;
};

}  // namespace kvferry::proxy
