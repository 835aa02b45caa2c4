#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "common/log.h"
#include "common/result.h"
#include "http/deadlines.h"
#include "http/message.h"

namespace kvferry::http {

// How a handler answers. All of it happens on the server's loop; views must stay valid until the awaited call returns.
// An Error (peer_lost, deadline_exceeded) means that the client is gone: stop and return.
class ResponseWriter {
 public:
  virtual ~ResponseWriter() = default;

  // The whole answer at once.
  virtual boost::asio::awaitable<Status> send(Response response) = 0;

  // An answer in pieces: start, write as often as wanted, finish. Each write returns when the kernel has taken the
  // bytes: that is the back-pressure, nothing is queued behind it.
  virtual boost::asio::awaitable<Status> start(int status, const Headers& headers) = 0;
  virtual boost::asio::awaitable<Status> write(std::string_view bytes) = 0;
  virtual boost::asio::awaitable<Status> finish() = 0;

  // An answer whose bytes, status line and framing included, are the handler's own. raw_end says that it is complete
  // and whether another request may follow on this connection; without it the connection is closed.
  virtual boost::asio::awaitable<Status> raw(std::string_view bytes) = 0;
  virtual void raw_end(bool reusable) = 0;
  // As raw(), without waiting. False: the client does not take all of it now; the rest is kept, and raw({}) sends it.
  // REQUIRES: nothing is kept.
  virtual Result<bool> raw_now(std::string_view bytes) = 0;

  // True as soon as the first byte of an answer is on its way.
  virtual bool started() const = 0;
  // Whether the connection may be kept afterwards: what a raw answer's Connection header should say.
  virtual bool keep_alive() const = 0;

  // The client closed its connection (also half of it: HTTP has no other sign of giving up), or sent so much before its
  // answer that this could not be seen, or the server was closed.
  virtual bool gone() const = 0;
  // Called once, on the loop, when that happens; an empty function takes the last one back.
  virtual void on_gone(std::function<void()> notice) = 0;
};

// Answers one request. Returning without an answer sends 500; must not throw.
using Handler = std::function<boost::asio::awaitable<void>(Request&, ResponseWriter&)>;

// What is answered from a request's head alone, before its body is read; nothing: the body is read and the handler
// asked. A body that is not read ends the connection.
using HeadHandler = std::function<std::optional<Response>(const RequestHead&)>;

struct ServerConfig {
  std::string host = "127.0.0.1";  // an address or a name; "::" takes both families
  uint16_t port = 0;               // 0: any free one
  int backlog = 4096;
  size_t max_connections = 10000;                    // further ones get 503
  size_t max_connections_per_address = 0;            // 0: no limit
  size_t max_head_bytes = 64 << 10;                  // else 431
  uint64_t max_body_bytes = 512ULL << 20;            // else 413
  uint64_t max_bodies_bytes = 0;                     // of all requests that are not answered yet, else 503; 0: no limit
  Duration idle_timeout = std::chrono::seconds(75);  // between requests
  Duration head_timeout = std::chrono::seconds(10);  // from the first byte of a head to its last, else 408
  Duration body_timeout = std::chrono::seconds(30);  // plus what its bytes take at min_body_rate, else 408
  uint64_t min_body_rate = 16 << 10;                 // bytes a second
  Duration write_timeout = std::chrono::seconds(60);  // without any progress
  std::string certificate_file;                       // PEM chain; with it the server speaks TLS only
  std::string key_file;
  std::shared_ptr<Logger> logger;  // says when these files have changed and were read again; may be null
};

struct ServerCounts {
  size_t open = 0;
  uint64_t body_bytes = 0;  // of requests that are not answered yet
  uint64_t accepted = 0;
  uint64_t refused = 0;  // over a connection limit or out of descriptors
};

class Server {
 public:
  // Binds and listens; requests are served as long as the loop runs. `loop` and `deadlines` must outlive the server.
  static Result<std::unique_ptr<Server>> create(boost::asio::io_context& loop, Deadlines& deadlines,
                                                ServerConfig config, Handler handler, HeadHandler at_head = {});
  // Closes everything; handlers that still run are destroyed where they wait.
  ~Server();

  uint16_t port() const;
  ServerCounts counts() const;

  // No new connections; idle ones are closed, busy ones after the answer in progress.
  void drain();
  // Closes what is left: writers fail, gone notices are given.
  void close();

 private:
  struct Core;
  explicit Server(std::shared_ptr<Core> core) : core_(std::move(core)) {}
  friend class Connection;
  std::shared_ptr<Core> core_;
};

}  // namespace kvferry::http
