#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <string>

#include "common/check.h"
#include "common/fd.h"

namespace kvferry::test {

// A port that takes connections and says nothing.
class SilentPort {
 public:
  SilentPort() : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof at;
    KVF_CHECK(::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) == 0);
    KVF_CHECK(::listen(fd_.get(), 16) == 0);
    KVF_CHECK(::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&at), &length) == 0);
    port_ = ntohs(at.sin_port);
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  UniqueFd fd_;
  uint16_t port_ = 0;
};

}  // namespace kvferry::test
