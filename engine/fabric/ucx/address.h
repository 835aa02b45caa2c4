#pragma once

#include <arpa/inet.h>
#include <sys/socket.h>
#include <ucs/sys/sock.h>

#include <string>

namespace kvferry::ucx {

// A numeric IP address and port, as UCX takes it.
class SocketAddress {
 public:
  static SocketAddress parse(const std::string& host, uint16_t port) {
    SocketAddress out;
    auto* four = reinterpret_cast<sockaddr_in*>(&out.storage_);
    auto* six = reinterpret_cast<sockaddr_in6*>(&out.storage_);
    if (::inet_pton(AF_INET, host.c_str(), &four->sin_addr) == 1) {
      four->sin_family = AF_INET;
      four->sin_port = htons(port);
      out.length_ = sizeof *four;
    } else if (::inet_pton(AF_INET6, host.c_str(), &six->sin6_addr) == 1) {
      six->sin6_family = AF_INET6;
      six->sin6_port = htons(port);
      out.length_ = sizeof *six;
    }
    return out;
  }
  // "host:port" or "[v6]:port".
  static SocketAddress parse(const std::string& text) {
    const size_t colon = text.rfind(':');
    if (colon == std::string::npos) return {};
    std::string host = text.substr(0, colon);
    if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
    const int port = std::atoi(text.c_str() + colon + 1);
    return port > 0 && port < 65536 ? parse(host, static_cast<uint16_t>(port)) : SocketAddress{};
  }

  bool ok() const { return length_ > 0; }
  ucs_sock_addr_t ucs() const { return {reinterpret_cast<const sockaddr*>(&storage_), length_}; }

 private:
  sockaddr_storage storage_{};
  socklen_t length_ = 0;
};

inline std::string to_text(const sockaddr_storage& storage) {
  char host[INET6_ADDRSTRLEN] = "";
  if (storage.ss_family == AF_INET6) {
    const auto& six = reinterpret_cast<const sockaddr_in6&>(storage);
    ::inet_ntop(AF_INET6, &six.sin6_addr, host, sizeof host);
    return "[" + std::string(host) + "]:" + std::to_string(ntohs(six.sin6_port));
  }
  const auto& four = reinterpret_cast<const sockaddr_in&>(storage);
  ::inet_ntop(AF_INET, &four.sin_addr, host, sizeof host);
  return std::string(host) + ":" + std::to_string(ntohs(four.sin_port));
}

}  // namespace kvferry::ucx
