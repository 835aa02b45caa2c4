#include "engine/bench/channel.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <climits>

namespace kvferry::bench {
namespace {

void no_delay(int fd) {
  const int one = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

Error closed() {
  return Error{ErrorCode::peer_lost, "the other process closed the connection"};
}

using Move = ssize_t (*)(int, msghdr*);

Status move_vectors(int fd, std::vector<iovec>& vectors, Move move, const char* what) {
  for (size_t first = 0; first < vectors.size();) {
    msghdr message{};
    message.msg_iov = &vectors[first];
    message.msg_iovlen = std::min<size_t>(vectors.size() - first, IOV_MAX);
    const ssize_t moved = move(fd, &message);
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0) return errno_error(what);
    if (moved == 0) return closed();
    auto left = static_cast<size_t>(moved);
    while (first < vectors.size() && left >= vectors[first].iov_len) left -= vectors[first++].iov_len;
    if (left == 0) continue;
    vectors[first].iov_base = static_cast<char*>(vectors[first].iov_base) + left;
    vectors[first].iov_len -= left;
  }
  return {};
}

}  // namespace

Result<UniqueFd> dial(const std::string& text) {
  KVF_ASSIGN_OR_RETURN(const Address address, parse_address(text, true));
  KVF_ASSIGN_OR_RETURN(const SocketAddress raw, to_socket_address(address));
  UniqueFd fd(::socket(raw.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return errno_error("cannot open a socket");
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&raw.storage), raw.length) != 0)
    return errno_error("cannot connect to " + text);
  no_delay(fd.get());
  return fd;
}

Result<ListeningSocket> listen_on(const std::string& text) {
  KVF_ASSIGN_OR_RETURN(const Address address, parse_address(text, false));
  KVF_ASSIGN_OR_RETURN(SocketAddress raw, to_socket_address(address));
  UniqueFd fd(::socket(raw.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return errno_error("cannot open a socket");
  const int one = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&raw.storage), raw.length) != 0 ||
      ::listen(fd.get(), SOMAXCONN) != 0)
    return errno_error("cannot listen on " + text);
  ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&raw.storage), &raw.length);
  return ListeningSocket{std::move(fd), from_socket_address(raw.storage).to_string()};
}

Result<UniqueFd> accept_from(int listener) {
  while (true) {
    UniqueFd fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (!fd && errno == EINTR) continue;
    if (!fd) return errno_error("cannot accept a connection");
    no_delay(fd.get());
    return fd;
  }
}

Status send_all(int fd, const void* bytes, size_t count) {
  return send_vectors(fd, {{const_cast<void*>(bytes), count}});
}

Status receive_all(int fd, void* bytes, size_t count) {
  return receive_vectors(fd, {{bytes, count}});
}

Status send_vectors(int fd, std::vector<iovec> from) {
  return move_vectors(
      fd, from, [](int to, msghdr* message) { return ::sendmsg(to, message, MSG_NOSIGNAL); }, "cannot send");
}

Status receive_vectors(int fd, std::vector<iovec> into) {
  return move_vectors(
      fd, into, [](int from, msghdr* message) { return ::recvmsg(from, message, 0); }, "cannot receive");
}

Status LineChannel::send(const std::string& line) {
  const std::string whole = line + '\n';
  return send_all(fd_.get(), whole.data(), whole.size());
}

Result<std::string> LineChannel::receive() {
  while (true) {
    const size_t end = pending_.find('\n');
    if (end != std::string::npos) {
      std::string line = pending_.substr(0, end);
      pending_.erase(0, end + 1);
      return line;
    }
    char buffer[4096];
    const ssize_t count = ::recv(fd_.get(), buffer, sizeof buffer, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno_error("cannot receive");
    if (count == 0) return closed();
    pending_.append(buffer, static_cast<size_t>(count));
  }
}

Result<std::string> LineChannel::ask(const std::string& line) {
  KVF_RETURN_IF_ERROR(send(line));
  KVF_ASSIGN_OR_RETURN(std::string answer, receive());
  if (answer.starts_with("error ")) return Error{ErrorCode::internal, "the target: " + answer.substr(6)};
  return answer;
}

}  // namespace kvferry::bench
