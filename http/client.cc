#include "http/client.h"

#include <sys/socket.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <tuple>

#include "http/chunked.h"
#include "http/lookup.h"
#include "http/parser.h"
#include "http/stream.h"

namespace kvferry::http {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
constexpr auto use_tuple = asio::as_tuple(asio::use_awaitable);

constexpr size_t kMaxResponseHead = 64 << 10;

class ConnectionImpl final : public ClientConnection {
 public:
  ConnectionImpl(asio::io_context& loop, Deadlines& deadlines, std::string peer, std::shared_ptr<TlsContext> trust)
      : loop_(loop),
        deadlines_(deadlines),
        peer_(std::move(peer)),
        trust_(std::move(trust)),
        deadline_(deadlines, [this] {
          timed_out_ = true;
          shut();
        }) {}

  asio::awaitable<Status> open(const Url& url, TimePoint due) {
    auto endpoints = co_await find(url.host);
    if (timed_out_) co_return failure({});
    if (!endpoints.ok()) co_return failure(endpoints.error());
    for (tcp::endpoint& endpoint : *endpoints) endpoint.port(url.port);
    const Status reached = co_await reach(*endpoints, due);
    if (!reached.ok()) co_return reached;
    stream_ = url.secure ? std::make_unique<Stream>(std::move(*connecting_), *trust_, url.host)
                         : std::make_unique<Stream>(std::move(*connecting_));
    stream_->bound_input();
    if (!url.secure) co_return Status();
    const Status secured = co_await stream_->handshake();
    if (!secured.ok()) co_return failure(secured.error());
    co_return Status();
  }

  void set_deadline(TimePoint at) override { at == kNever ? deadline_.clear() : deadline_.set(at); }

  asio::awaitable<Status> send(std::span<const std::string_view> pieces) override {
    in_.erase(0, std::exchange(taken_, 0));
    answered_ = false;
    body_.reset();
    const Status sent = co_await stream_->send(pieces);
    if (!sent.ok()) co_return failure(sent.error());
    co_return Status();
  }

  asio::awaitable<Result<ResponseHead>> read_head(bool to_head_request) override {
    size_t scanned = 0;
    for (;;) {
      if (const auto end = find_head_end(in_, scanned)) {
        auto head = parse_response_head(std::string_view(in_).substr(0, *end), to_head_request);
        in_.erase(0, *end);
        if (!head.ok()) co_return failure(head.error());
        scanned = 0;
        if (head->status < 200) continue;
        body_.emplace(*head);
        keep_alive_ = head->keep_alive;
        co_return std::move(head);
      }
      if (in_.size() > kMaxResponseHead) {
        co_return Error{ErrorCode::protocol, "response head too large", "", peer_, ""};
      }
      const auto bytes = stream_->receive_now();
      if (!bytes.ok()) co_return failure(bytes.error());
      if (bytes->empty()) {
        co_await stream_->wait_readable();
        continue;
      }
      answered_ = true;
      in_.append(*bytes);
    }
  }

  Result<std::string_view> body_now(std::string* payload) override {
    if (body_->done()) return std::string_view();
    if (taken_ > 0) in_.erase(0, std::exchange(taken_, 0));
    if (!in_.empty()) {
      KVF_ASSIGN_OR_RETURN(taken_, body_->take(in_, payload));
      return std::string_view(in_).substr(0, taken_);
    }
    auto bytes = stream_->receive_now();
    if (!bytes.ok()) {
      if (!stream_->closed() && bytes.error().cause == "end of stream" && body_->end_of_stream()) {
        keep_alive_ = false;
        return std::string_view();
      }
      return failure(bytes.error());
    }
    KVF_ASSIGN_OR_RETURN(const size_t used, body_->take(*bytes, payload));
    if (used < bytes->size()) keep_alive_ = false;  // more than an answer: not to be trusted again
    return bytes->substr(0, used);
  }

  asio::awaitable<void> wait() override { return stream_->wait_readable(); }

  asio::awaitable<Status> pump(std::function<bool(std::string_view)> take) override {
    Status end;
    // False: the caller has to go on.
    const auto step = [this, &take, &end] {
      for (;;) {
        const auto piece = body_now(nullptr);
        if (!piece.ok()) end = piece.error();
        if (!piece.ok() || body_->done()) {
          if (piece.ok() && !piece->empty()) (void)take(*piece);
          return false;
        }
        if (piece->empty()) return true;
        if (!take(*piece)) return false;
      }
    };
    if (step()) co_await stream_->wait_readable(step);
    co_return end;
  }

  bool body_done() const override { return body_ && body_->done(); }
  bool between_chunks() const override { return body_ && body_->between_chunks(); }
  bool answered() const override { return answered_; }

  bool has_input() override {
    char byte = 0;
    return stream_ && !stream_->closed() &&
           ::recv(stream_->socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
  }

  bool reusable() override {
    if (!body_done() || !keep_alive_ || in_.size() > taken_) return false;
    return stream_->quiet_idle();
  }

  void close() override {
    deadline_.clear();
    shut();
  }

 private:
  asio::awaitable<Result<Endpoints>> find(const std::string& host) {
    error_code is_name;
    const auto address = asio::ip::make_address(host, is_name);
    if (!is_name) co_return Endpoints{{address, 0}};
    const auto lookup = asio::use_service<Lookups>(loop_).find(host);
    if (!lookup.ok()) co_return lookup.error();
    auto answered = (*lookup)->watch();
    if (!answered.ok()) co_return answered.error();
    looking_ = std::make_unique<asio::posix::stream_descriptor>(loop_);
    error_code unwatched;
    looking_->assign(answered->get(), unwatched);
    if (unwatched) {
      looking_.reset();
      co_return Error{ErrorCode::unavailable, "cannot wait for a host name", unwatched.message(), host, ""};
    }
    static_cast<void>(answered->release());
    co_await looking_->async_wait(asio::posix::stream_descriptor::wait_read, use_tuple);
    looking_.reset();
    co_return (*lookup)->answer();
  }

  // One after the other: a host may have addresses that nobody listens at, or that nothing leads to. One that is silent
  // takes no more than its share of the time that is left.
  asio::awaitable<Status> reach(const Endpoints& endpoints, TimePoint due) {
    error_code error;
    Deadline share(deadlines_, [this] { hang_up(); });
    auto left = static_cast<int>(endpoints.size());
    for (const tcp::endpoint& endpoint : endpoints) {
      connecting_ = std::make_unique<tcp::socket>(loop_);
      const Duration time = due - deadlines_.now();
      left > 1 ? share.set_in(time / left) : share.clear();
      --left;
      std::tie(error) = co_await connecting_->async_connect(endpoint, use_tuple);
      if (timed_out_) co_return failure({});
      if (!error && connecting_->is_open()) co_return Status();
    }
    co_return failure({ErrorCode::unavailable, "cannot connect", error.message(), "", ""});
  }

  void hang_up() {
    error_code ignored;
    connecting_->close(ignored);
  }

  void shut() {
    error_code ignored;
    if (stream_) {
      stream_->close();
    } else if (connecting_) {
      hang_up();
    } else if (looking_) {
      looking_->close(ignored);
    }
  }

  Error failure(Error error) const {
    if (timed_out_) return {ErrorCode::deadline_exceeded, "no answer in time", "", peer_, ""};
    if (stream_ && stream_->closed()) return {ErrorCode::cancelled, "connection given up", "", peer_, ""};
    error.peer = peer_;
    return error;
  }

  asio::io_context& loop_;
  Deadlines& deadlines_;
  const std::string peer_;
  const std::shared_ptr<TlsContext> trust_;
  Deadline deadline_;
  std::unique_ptr<asio::posix::stream_descriptor> looking_;  // for the host's name
  std::unique_ptr<tcp::socket> connecting_;
  std::unique_ptr<Stream> stream_;
  std::string in_;    // received, not yet handed out
  size_t taken_ = 0;  // front of in_ that body_now() handed out
  std::optional<BodyTracker> body_;
  bool keep_alive_ = true;
  bool answered_ = false;
  bool timed_out_ = false;
};

std::string request_head(const Fetch& request) {
  std::string head = request.method + " " + request.url.path + request.target + " HTTP/1.1\r\n";
  append_field(head, "Host", request.url.authority());
  for (size_t i = 0; i < request.headers.size(); ++i) {
    append_field(head, request.headers.name(i), request.headers.value(i));
  }
  if (!request.body.empty() || request.method == "POST") {
    append_field(head, "Content-Length", std::to_string(request.body.size()));
  }
  head.append("Connection: close\r\n\r\n");
  return head;
}

}  // namespace

asio::awaitable<Result<std::unique_ptr<ClientConnection>>> ClientConnection::connect(
    asio::io_context& loop, Deadlines& deadlines, Url url, Duration timeout, std::shared_ptr<TlsContext> trust) {
  if (url.secure && !trust) {
    co_return Error{ErrorCode::invalid_argument, "https needs to be told whom to trust", "", url.authority(), ""};
  }
  auto connection = std::make_unique<ConnectionImpl>(loop, deadlines, url.authority(), std::move(trust));
  const TimePoint due = after(deadlines.now(), timeout);
  connection->set_deadline(due);
  const Status opened = co_await connection->open(url, due);
  if (!opened.ok()) co_return opened.error();
  connection->set_deadline(kNever);
  co_return std::unique_ptr<ClientConnection>(std::move(connection));
}

asio::awaitable<Result<std::string>> read_whole_body(ClientConnection& connection, size_t max_bytes) {
  std::string body;
  for (;;) {
    const auto bytes = connection.body_now(&body);
    if (!bytes.ok()) co_return bytes.error();
    if (connection.body_done()) {
      body.reserve(body.size() + kBodyPadding);
      co_return body;
    }
    if (body.size() > max_bytes) co_return Error{ErrorCode::resource_exhausted, "response body too large", "", "", ""};
    if (bytes->empty()) co_await connection.wait();
  }
}

asio::awaitable<Result<Fetched>> fetch(asio::io_context& loop, Deadlines& deadlines, Fetch request) {
  const TimePoint deadline = after(deadlines.now(), request.timeout);
  auto connection = co_await ClientConnection::connect(loop, deadlines, request.url, request.timeout, request.trust);
  if (!connection.ok()) co_return connection.error();
  ClientConnection& wire = **connection;
  wire.set_deadline(deadline);
  const std::string head = request_head(request);
  const std::array<std::string_view, 2> pieces{head, request.body};
  const Status sent = co_await wire.send(pieces);
  if (!sent.ok()) co_return sent.error();
  auto answer = co_await wire.read_head(request.method == "HEAD");
  if (!answer.ok()) co_return answer.error();
  auto body = co_await read_whole_body(wire, request.max_body_bytes);
  if (!body.ok()) co_return body.error();
  co_return Fetched{std::move(*answer), std::move(*body)};
}

}  // namespace kvferry::http
