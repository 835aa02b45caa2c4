#include "engine/io/socket_network.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <utility>

#include "engine/io/kernel_tls.h"

namespace kvferry {
namespace {

using std::chrono::milliseconds;

void tune(int fd, const SocketOptions& options) {
  const int one = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  // A connection that something between swallows (a firewall that forgot it) ends, although nobody says so.
  const int idle_s = static_cast<int>(options.silence.count() / 2);
  const int probe_s = std::max(idle_s / 3, 1);
  const int probes = 3;
  const auto unacknowledged_ms = static_cast<unsigned>(options.silence.count() * 1000);
  ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &probe_s, sizeof probe_s);
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
  ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unacknowledged_ms, sizeof unacknowledged_ms);
  if (options.buffer_bytes > 0) {
    ::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &options.buffer_bytes, sizeof options.buffer_bytes);
    ::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &options.buffer_bytes, sizeof options.buffer_bytes);
  }
  if (!options.congestion.empty())
    ::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, options.congestion.data(),
                 static_cast<socklen_t>(options.congestion.size()));
}

class SocketStream final : public Stream, public FdHandler {
 public:
  SocketStream(EpollLoop& loop, UniqueFd fd, std::string peer)
      : loop_(loop), fd_(std::move(fd)), peer_(std::move(peer)) {}
  ~SocketStream() override { loop_.unwatch(fd_.get()); }

  Status start() { return loop_.watch(fd_.get(), 0, this); }

  void set_handler(StreamHandler* handler) override { handler_ = handler; }

  void want(bool readable, bool writable) override {
    const uint32_t events = (readable ? EPOLLIN | EPOLLRDHUP : 0u) | (writable ? EPOLLOUT : 0u);
    if (events == events_) return;
    events_ = events;
    loop_.modify(fd_.get(), events);
  }

  void wake_at(size_t bytes) override {
    if (std::exchange(wake_at_, bytes) == bytes) return;
    const int value = static_cast<int>(bytes);
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVLOWAT, &value, sizeof value);
  }

  Result<size_t> read(std::span<const iovec> into) override {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(into.data());
    message.msg_iovlen = std::min<size_t>(into.size(), IOV_MAX);
    const ssize_t count = ::recvmsg(fd_.get(), &message, MSG_DONTWAIT);
    if (count == 0) return Error{ErrorCode::peer_lost, "connection closed by the other side", {}, peer_, {}};
    return moved(count, "cannot read from the connection");
  }

  Result<size_t> write(std::span<const iovec> from) override {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(from.data());
    message.msg_iovlen = std::min<size_t>(from.size(), IOV_MAX);
    return moved(::sendmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL), "cannot write to the connection");
  }

  bool torn() const override { return (poll_now(POLLRDHUP) & (POLLERR | POLLHUP | POLLRDHUP)) != 0; }
  bool has_input() const override { return (poll_now(POLLIN) & POLLIN) != 0; }

  void reset_on_close() override {
    const linger at_once{1, 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  }

  std::string peer_address() const override { return peer_; }
  bool encrypt_with(const SendKeys& keys) override { return encrypt_in_kernel(fd_.get(), keys).ok(); }

 private:
  void on_fd_ready(uint32_t events) override {
    if (handler_ == nullptr) return;
    const bool broken = (events & (EPOLLERR | EPOLLHUP)) != 0;
    handler_->on_stream_ready(broken || (events & (EPOLLIN | EPOLLRDHUP)) != 0, broken || (events & EPOLLOUT) != 0);
  }

  Result<size_t> moved(ssize_t count, const char* message) {
    if (count >= 0) return static_cast<size_t>(count);
    if (errno == EAGAIN || errno == EINTR) return size_t{0};
    Error error = errno_error(message);
    if (error.code == ErrorCode::internal) error.code = ErrorCode::peer_lost;
    error.peer = peer_;
    return error;
  }

  int poll_now(short events) const {
    pollfd one{fd_.get(), events, 0};
    return ::poll(&one, 1, 0) > 0 ? one.revents : 0;
  }

  EpollLoop& loop_;
  const UniqueFd fd_;
  const std::string peer_;
  StreamHandler* handler_ = nullptr;
  uint32_t events_ = 0;
  size_t wake_at_ = 1;  // the kernel's default
};

class SocketListener final : public Listener, public FdHandler {
 public:
  SocketListener(EpollLoop& loop, UniqueFd fd, SocketOptions options, Network::Accepted accepted)
      : loop_(loop), fd_(std::move(fd)), options_(std::move(options)), accepted_(std::move(accepted)), retry_(loop) {}
  ~SocketListener() override { loop_.unwatch(fd_.get()); }

  Status start() { return loop_.watch(fd_.get(), EPOLLIN, this); }

  Address address() const override {
    sockaddr_storage storage{};
    socklen_t length = sizeof storage;
    ::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&storage), &length);
    return from_socket_address(storage);
  }

 private:
  void on_fd_ready(uint32_t) override {
    constexpr int kPerTurn = 64;  // then the other events get their turn
    for (int i = 0; i < kPerTurn; ++i) {
      sockaddr_storage storage{};
      socklen_t length = sizeof storage;
      UniqueFd fd(::accept4(fd_.get(), reinterpret_cast<sockaddr*>(&storage), &length, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!fd) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) pause();
        return;
      }
      tune(fd.get(), options_);
      auto stream = std::make_unique<SocketStream>(loop_, std::move(fd), from_socket_address(storage).to_string());
      if (stream->start().ok()) accepted_(std::move(stream));
    }
  }

  // Out of descriptors: the connection waits in the backlog instead of spinning the loop.
  void pause() {
    loop_.modify(fd_.get(), 0);
    retry_.arm(loop_.now() + milliseconds(50), [this] { loop_.modify(fd_.get(), EPOLLIN); });
  }

  EpollLoop& loop_;
  const UniqueFd fd_;
  const SocketOptions options_;
  const Network::Accepted accepted_;
  Timer retry_;
};

Result<UniqueFd> open_socket(int family) {
  UniqueFd fd(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return errno_error("cannot open a socket");
  return fd;
}

}  // namespace

Result<std::unique_ptr<Listener>> SocketNetwork::listen(const Address& address, Accepted accepted) {
  KVF_ASSIGN_OR_RETURN(const SocketAddress raw, to_socket_address(address));
  KVF_ASSIGN_OR_RETURN(UniqueFd fd, open_socket(raw.storage.ss_family));
  const int one = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&raw.storage), raw.length) != 0)
    return errno_error("cannot bind " + address.to_string());
  if (::listen(fd.get(), options_.backlog) != 0) return errno_error("cannot listen on " + address.to_string());
  auto listener = std::make_unique<SocketListener>(loop_, std::move(fd), options_, std::move(accepted));
  KVF_RETURN_IF_ERROR(listener->start());
  return std::unique_ptr<Listener>(std::move(listener));
}

Result<std::unique_ptr<Stream>> SocketNetwork::dial(const Address& address) {
  KVF_ASSIGN_OR_RETURN(const SocketAddress raw, to_socket_address(address));
  KVF_ASSIGN_OR_RETURN(UniqueFd fd, open_socket(raw.storage.ss_family));
  tune(fd.get(), options_);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&raw.storage), raw.length) != 0 && errno != EINPROGRESS)
    return errno_error("cannot connect to " + address.to_string());
  auto stream = std::make_unique<SocketStream>(loop_, std::move(fd), address.to_string());
  KVF_RETURN_IF_ERROR(stream->start());
  return std::unique_ptr<Stream>(std::move(stream));
}

}  // namespace kvferry
