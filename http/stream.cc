#include "http/stream.h"

#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl/host_name_verification.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <cstring>
#include <vector>

#include "common/check.h"

namespace kvferry::http {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
constexpr auto use_tuple = asio::as_tuple(asio::use_awaitable);

// One block a thread: what is received is used or copied before the loop turns again.
std::array<char, kBlockBytes>& shared_block() {
  thread_local std::array<char, kBlockBytes> block;
  return block;
}

// What is left to send of a list of pieces.
class Cursor {
 public:
  explicit Cursor(std::span<const std::string_view> pieces) : pieces_(pieces) { skip_empty(); }

  bool done() const { return index_ == pieces_.size(); }

  ssize_t send(int fd) {
    std::array<iovec, 16> vectors;
    size_t count = 0;
    size_t offset = offset_;
    for (size_t i = index_; i < pieces_.size() && count < vectors.size(); ++i) {
      const std::string_view piece = pieces_[i].substr(offset);
      offset = 0;
      if (!piece.empty()) vectors[count++] = {const_cast<char*>(piece.data()), piece.size()};
    }
    msghdr message{};
    message.msg_iov = vectors.data();
    message.msg_iovlen = count;
    const ssize_t sent = ::sendmsg(fd, &message, MSG_NOSIGNAL);
    if (sent > 0) advance(static_cast<size_t>(sent));
    return sent;
  }

 private:
  void advance(size_t sent) {
    while (sent > 0) {
      const size_t of_piece = std::min(sent, pieces_[index_].size() - offset_);
      offset_ += of_piece;
      sent -= of_piece;
      skip_empty();
    }
  }
  void skip_empty() {
    while (index_ < pieces_.size() && offset_ == pieces_[index_].size()) {
      ++index_;
      offset_ = 0;
    }
  }

  std::span<const std::string_view> pieces_;
  size_t index_ = 0;
  size_t offset_ = 0;
};

// Wakes a coroutine, or lets `step` look first.
template <class Handler>
class SteppedWaiter final : public Readiness::Waiter {
 public:
  SteppedWaiter(Readiness& readiness, std::function<bool()> step, Handler handler)
      : readiness_(readiness), step_(std::move(step)), handler_(std::move(handler)) {}

  void resume(std::unique_ptr<Waiter> self) override {
    if (step_ && step_()) return readiness_.wait(std::move(self));
    Handler handler = std::move(handler_);
    self.reset();
    std::move(handler)();
  }

 private:
  Readiness& readiness_;
  std::function<bool()> step_;
  Handler handler_;
};

class FunctionWaiter final : public Readiness::Waiter {
 public:
  explicit FunctionWaiter(std::function<void()> ready) : ready_(std::move(ready)) {}
  void resume(std::unique_ptr<Waiter> self) override {
    const auto ready = std::move(ready_);
    self.reset();
    ready();
  }

 private:
  std::function<void()> ready_;
};

Error lost(std::string cause) {
  return {ErrorCode::peer_lost, "connection lost", std::move(cause), "", ""};
}

}  // namespace

struct Stream::Tls {
  Tls(Socket& socket, TlsContext& context, asio::ssl::stream_base::handshake_type side_in)
      : stream(socket, context), side(side_in), block(kBlockBytes) {}
  asio::ssl::stream<Socket&> stream;
  const asio::ssl::stream_base::handshake_type side;
  std::vector<char> block;  // as much as one TLS record
  size_t received = 0;
  error_code error;
  bool reading = false;
};

Stream::Stream(Socket socket) : socket_(std::move(socket)) {
  prepare();
  const int on = 1;
  ::setsockopt(socket_.native_handle(), IPPROTO_TCP, TCP_INQ, &on, sizeof on);
  if (socket_.is_open()) readiness_ = std::make_unique<Readiness>(socket_);
}

Stream::Stream(Socket socket, TlsContext& context) : socket_(std::move(socket)) {
  prepare();
  tls_ = std::make_unique<Tls>(socket_, context, asio::ssl::stream_base::server);
}

Stream::Stream(Socket socket, TlsContext& context, const std::string& host) : socket_(std::move(socket)) {
  prepare();
  tls_ = std::make_unique<Tls>(socket_, context, asio::ssl::stream_base::client);
  error_code is_name;
  asio::ip::make_address(host, is_name);
  if (is_name) SSL_set_tlsext_host_name(tls_->stream.native_handle(), host.c_str());
  tls_->stream.set_verify_callback(asio::ssl::host_name_verification(host));
}

Stream::~Stream() = default;

void Stream::prepare() {
  error_code ignored;
  socket_.non_blocking(true, ignored);
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
}

void Stream::bound_output() {
  constexpr int kUnsentBytes = 32 << 10;
  ::setsockopt(socket_.native_handle(), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &kUnsentBytes, sizeof kUnsentBytes);
}

void Stream::bound_input() {
  error_code ignored;
  socket_.set_option(asio::socket_base::receive_buffer_size(64 << 10), ignored);
}

ssize_t Stream::receive(std::span<char> target) {
  if (!readiness_->readable()) {
    errno = EAGAIN;
    return -1;
  }
  iovec into{target.data(), target.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control;
  msghdr message{};
  message.msg_iov = &into;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t got = ::recvmsg(socket_.native_handle(), &message, 0);
  if (got < 0 && errno == EAGAIN) {
    readiness_->drained();
    return got;
  }
  // How much is left; a FIN counts as a byte. Without that word there may be more.
  int left = 1;
  const cmsghdr* told = got > 0 ? CMSG_FIRSTHDR(&message) : nullptr;
  if (told != nullptr && told->cmsg_level == SOL_TCP && told->cmsg_type == TCP_CM_INQ)
    std::memcpy(&left, CMSG_DATA(told), sizeof left);
  readiness_->received(left != 0);
  return got;
}

asio::awaitable<Status> Stream::handshake() {
  if (!tls_) co_return Status();
  auto [error] = co_await tls_->stream.async_handshake(tls_->side, use_tuple);
  if (error.category() == asio::error::get_ssl_category())
    co_return Error{ErrorCode::permission_denied, "TLS cannot be agreed on", error.message(), "", ""};
  if (error) co_return lost(error.message());
  co_return Status();
}

Result<std::string_view> Stream::receive_now() {
  if (closed_) return lost("closed here");
  if (tls_) return receive_tls();
  auto& block = shared_block();
  const ssize_t got = receive(block);
  if (got > 0) return std::string_view(block.data(), static_cast<size_t>(got));
  if (got == 0) return lost("end of stream");
  if (errno == EAGAIN || errno == EINTR) return std::string_view();
  return lost(std::strerror(errno));
}

Result<size_t> Stream::receive_into(std::span<char> target) {
  if (tls_) {
    if (tls_->received > target.size()) return split_tls(target);
    KVF_ASSIGN_OR_RETURN(const std::string_view bytes, receive_now());
    std::memcpy(target.data(), bytes.data(), bytes.size());
    return bytes.size();
  }
  if (closed_) return lost("closed here");
  const ssize_t got = receive(target);
  if (got > 0) return static_cast<size_t>(got);
  if (got == 0) return lost("end of stream");
  if (errno == EAGAIN || errno == EINTR) return size_t{0};
  return lost(std::strerror(errno));
}

size_t Stream::split_tls(std::span<char> target) {
  std::memcpy(target.data(), tls_->block.data(), target.size());
  std::memmove(tls_->block.data(), tls_->block.data() + target.size(), tls_->received - target.size());
  tls_->received -= target.size();
  return target.size();
}

Result<std::string_view> Stream::receive_tls() {
  if (tls_->reading) return std::string_view();
  if (tls_->error == asio::error::eof) return lost("end of stream");
  if (tls_->error) return lost(tls_->error.message());
  return std::string_view(tls_->block.data(), std::exchange(tls_->received, 0));
}

asio::awaitable<void> Stream::wait_readable(std::function<bool()> step) {
  if (closed_) co_return;
  if (!tls_) {
    co_await asio::async_initiate<const asio::use_awaitable_t<>, void()>(
        [this, &step](auto handler) {
          using Waiting = SteppedWaiter<decltype(handler)>;
          readiness_->wait(std::make_unique<Waiting>(*readiness_, std::move(step), std::move(handler)));
        },
        asio::use_awaitable);
    co_return;
  }
  KVF_CHECK(!step);
  if (tls_->received > 0) co_return;
  tls_->reading = true;
  auto [error, got] = co_await tls_->stream.async_read_some(asio::buffer(tls_->block), use_tuple);
  tls_->reading = false;
  tls_->received = got;
  tls_->error = error;
}

void Stream::on_readable(std::function<void()> ready) {
  if (!tls_) {
    return readiness_->wait(std::make_unique<FunctionWaiter>(std::move(ready)));
  }
  if (tls_->received > 0) return asio::post(socket_.get_executor(), std::move(ready));
  tls_->reading = true;
  tls_->stream.async_read_some(asio::buffer(tls_->block),
                               [this, ready = std::move(ready)](const error_code& error, size_t got) {
                                 tls_->reading = false;
                                 tls_->received = got;
                                 tls_->error = error;
                                 ready();
                               });
}

Result<size_t> Stream::send_now(std::string_view bytes) {
  if (closed_) return lost("closed here");
  if (tls_) return size_t{0};
  const ssize_t sent = ::send(socket_.native_handle(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  if (sent >= 0) return static_cast<size_t>(sent);
  if (errno == EAGAIN || errno == EINTR) return size_t{0};
  return lost(std::strerror(errno));
}

asio::awaitable<Status> Stream::send_tls(std::string_view bytes) {
  const asio::const_buffer buffer(bytes.data(), bytes.size());
  auto [error, sent] = co_await asio::async_write(tls_->stream, buffer, use_tuple);
  if (error) co_return lost(error.message());
  co_return Status();
}

asio::awaitable<Status> Stream::send(std::span<const std::string_view> pieces, const std::function<void()>& progress) {
  if (closed_) co_return lost("closed here");
  if (tls_) {
    for (const std::string_view piece : pieces) {
      const Status status = co_await send_tls(piece);
      if (!status.ok()) co_return status;
    }
    co_return Status();
  }
  Cursor cursor(pieces);
  while (!cursor.done()) {
    const ssize_t sent = cursor.send(socket_.native_handle());
    if (sent < 0 && errno != EAGAIN && errno != EINTR) co_return lost(std::strerror(errno));
    if (sent > 0) {
      if (progress) progress();
      continue;
    }
    co_await socket_.async_wait(Socket::wait_write, use_tuple);
    if (closed_) co_return lost("closed here");
  }
  co_return Status();
}

void Stream::close(bool reset) {
  if (std::exchange(closed_, true)) return;
  error_code ignored;
  if (reset) socket_.set_option(asio::socket_base::linger(true, 0), ignored);
  socket_.close(ignored);
}

bool Stream::quiet_idle() {
  if (closed_) return false;
  if (readiness_) return !readiness_->readable();
  char byte = 0;
  const ssize_t got = ::recv(socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return got < 0 && errno == EAGAIN;
}

std::string Stream::remote_address() const {
  error_code error;
  const auto endpoint = socket_.remote_endpoint(error);
  return error ? std::string() : endpoint.address().to_string();
}

}  // namespace kvferry::http
