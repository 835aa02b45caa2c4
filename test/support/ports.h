#pragma once

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>

#include "common/check.h"
#include "common/fd.h"

namespace kvferry::test {

inline bool is_free(uint16_t port) {
  const UniqueFd probe(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  ::setsockopt(probe.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(port);
  return ::bind(probe.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) == 0;
}

// A free port for a server that goes and comes back, or that must be the only one on it: each process looks elsewhere,
// and below the ports that the kernel gives to whoever connects or asks for any (from 32768 on), or somebody could take
// it meanwhile. None twice. Of one thread.
inline uint16_t own_port() {
  static uint32_t next = 10000 + static_cast<uint32_t>(::getpid()) % 500 * 40;
  while (next < 32768) {
    const auto port = static_cast<uint16_t>(next++);
    if (is_free(port)) return port;
  }
  KVF_CHECK(false);
  return 0;
}

}  // namespace kvferry::test
