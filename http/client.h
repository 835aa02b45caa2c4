#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "common/result.h"
#include "http/deadlines.h"
#include "http/message.h"
#include "http/tls.h"
#include "http/url.h"

namespace kvferry::http {

// One connection to a server, used for one request at a time. Everything happens on the loop. Errors: unavailable (not
// reached), peer_lost (closed or reset by the server), deadline_exceeded, cancelled (closed here), protocol.
class ClientConnection {
 public:
  // Tries all addresses of the host, one after the other, within `timeout`; of the time that is left, each has an equal
  // share. `trust`: for an https url, which is refused without.
  static boost::asio::awaitable<Result<std::unique_ptr<ClientConnection>>> connect(
      boost::asio::io_context& loop, Deadlines& deadlines, Url url, Duration timeout,
      std::shared_ptr<TlsContext> trust = {});
  virtual ~ClientConnection() = default;

  // Ends the connection at `at` if it is then still in use; kNever takes it back.
  virtual void set_deadline(TimePoint at) = 0;

  // Sends a request, head and body in any number of pieces, all of which must stay valid until this returns.
  virtual boost::asio::awaitable<Status> send(std::span<const std::string_view> pieces) = 0;
  // Reads the head of the answer, stepping over 1xx ones.
  virtual boost::asio::awaitable<Result<ResponseHead>> read_head(bool to_head_request = false) = 0;

  // The body as raw bytes, framing included. body_now() returns what is there, perhaps nothing, valid until the loop
  // turns or the next call; wait() returns when there may be more. With `payload`, what the framing carries is
  // appended to it.
  virtual Result<std::string_view> body_now(std::string* payload = nullptr) = 0;
  virtual boost::asio::awaitable<void> wait() = 0;
  // Hands the body to `take`, piece by piece as it comes and without waking the caller in between, until the body is
  // done or `take` has returned false. An Error where body_now() would give one.
  virtual boost::asio::awaitable<Status> pump(std::function<bool(std::string_view)> take) = 0;
  virtual bool body_done() const = 0;
  // True between two chunks of a chunked body: bytes of our own may be put in there.
  virtual bool between_chunks() const = 0;

  // True once any byte of the current answer has come.
  virtual bool answered() const = 0;
  // True if input waits in the socket: an answer that was not read yet.
  virtual bool has_input() = 0;
  // True if another request may be sent: the answer was complete, both sides keep the connection, and nothing has come
  // since, as of the loop's last turn.
  virtual bool reusable() = 0;
  // From anywhere on the loop: what waits on this connection ends with `cancelled`.
  virtual void close() = 0;
};

struct Fetch {
  std::string method = "GET";
  Url url;
  std::string target = "/";  // appended to url.path
  Headers headers;           // Host, Content-Length and Connection are added
  std::string body;
  Duration timeout = std::chrono::seconds(5);  // for all of it
  size_t max_body_bytes = 16 << 20;
  std::shared_ptr<TlsContext> trust;  // for an https url: trust_authorities()
};

struct Fetched {
  ResponseHead head;
  std::string body;
};

// One request on a connection of its own.
boost::asio::awaitable<Result<Fetched>> fetch(boost::asio::io_context& loop, Deadlines& deadlines, Fetch request);

// The rest of the body of the answer being read on `connection`.
boost::asio::awaitable<Result<std::string>> read_whole_body(ClientConnection& connection, size_t max_bytes);

}  // namespace kvferry::http
