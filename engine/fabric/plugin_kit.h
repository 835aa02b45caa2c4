#pragma once

#include <arpa/inet.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <string_view>

#include "engine/fabric/plugin_abi.h"

// What plug-ins have in common on their side of plugin_abi.h. Headers only: a plug-in has nothing else of the project.

namespace kvferry::plugin_kit {

// Writes `text` and returns `result`.
inline int32_t say(kvf_text why, std::string_view text, int32_t result) {
  if (why.size == 0) return result;
  const size_t length = std::min(text.size(), why.size - 1);
  std::memcpy(why.data, text.data(), length);
  why.data[length] = '\0';
  return result;
}

// No exception leaves a plug-in. Only memory that ran out throws there.
template <class Call>
int32_t guarded(kvf_text why, Call call) {
  try {
    return call();
  } catch (const std::exception& error) {
    return say(why, error.what(), KVF_FAILED);
  }
}

// A numeric IP address and port.
class SocketAddress {
 public:
  SocketAddress() = default;
  SocketAddress(const void* bytes, size_t size) {
    if (size > sizeof storage_) return;
    std::memcpy(&storage_, bytes, size);
    length_ = static_cast<socklen_t>(size);
  }
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
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage_); }
  socklen_t size() const { return length_; }
  bool is_v6() const { return storage_.ss_family == AF_INET6; }

  std::string to_text() const {
    char host[INET6_ADDRSTRLEN] = "";
    const auto& six = reinterpret_cast<const sockaddr_in6&>(storage_);
    const auto& four = reinterpret_cast<const sockaddr_in&>(storage_);
    if (is_v6())
      ::inet_ntop(AF_INET6, &six.sin6_addr, host, sizeof host);
    else
      ::inet_ntop(AF_INET, &four.sin_addr, host, sizeof host);
    std::string out = is_v6() ? "[" : "";
    out += host;
    out += is_v6() ? "]:" : ":";
    out += std::to_string(ntohs(is_v6() ? six.sin6_port : four.sin_port));
    return out;
  }

 private:
  sockaddr_storage storage_{};
  socklen_t length_ = 0;
};

}  // namespace kvferry::plugin_kit
