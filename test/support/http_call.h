#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <charconv>
#include <string>
#include <string_view>

#include "common/fd.h"

namespace kvferry::test {

// A connected TCP socket to this host, whose reads and writes give up after forty seconds; invalid when refused.
// `from`: an address of this host to come from.
inline UniqueFd dial(uint16_t port, const char* host = "127.0.0.1", const char* from = nullptr) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const timeval limit{40, 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  if (from) ::inet_pton(AF_INET, from, &address.sin_addr);
  if (from && ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return {};
  address.sin_port = htons(port);
  ::inet_pton(AF_INET, host, &address.sin_addr);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) fd.reset();
  return fd;
}

// False when the other side no longer reads.
inline bool send_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

// Everything until the other side closes or the socket's limit passes.
inline std::string receive_all(int fd) {
  std::string all;
  char block[4096];
  while (true) {
    const ssize_t got = ::recv(fd, block, sizeof block, 0);
    if (got < 0 && errno == EINTR) continue;  // stopped and continued
    if (got <= 0) break;
    all.append(block, static_cast<size_t>(got));
  }
  return all;
}

struct Answer {
  int status = 0;  // 0: none
  std::string head;
  std::string body;
};

inline Answer parse_answer(const std::string& all) {
  Answer answer;
  if (all.starts_with("HTTP/1.1 ")) std::from_chars(all.data() + 9, all.data() + all.size(), answer.status);
  const size_t end = all.find("\r\n\r\n");
  answer.head = all.substr(0, end);
  if (end != std::string::npos) answer.body = all.substr(end + 4);
  return answer;
}

// One request by plain sockets, so that what is tested is not also what tests. `headers`: whole lines with their ends.
inline Answer call(uint16_t port, const std::string& method, const std::string& target, const std::string& body = {},
                   const std::string& headers = {}, const char* host = "127.0.0.1") {
  const UniqueFd fd = dial(port, host);
  if (!fd.valid()) return {};
  std::string request = method + " " + target + " HTTP/1.1\r\nHost: test\r\nConnection: close\r\n" + headers;
  if (!body.empty()) request += "Content-Length: " + std::to_string(body.size()) + "\r\n";
  // The server may refuse before the body was sent: the answer counts.
  static_cast<void>(send_all(fd.get(), request + "\r\n" + body));
  return parse_answer(receive_all(fd.get()));
}

}  // namespace kvferry::test
