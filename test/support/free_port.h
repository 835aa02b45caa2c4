#pragma once

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include "common/check.h"
#include "common/fd.h"

namespace kvferry::test {

// The first of `count` ports in a row on which nothing listens, for who must know a port before he has it, or wants to
// have it again. None of those that the kernel lends to connections and to port 0 (32768 and up), and each process of
// tests begins to look elsewhere, so that nobody takes them meanwhile.
inline uint16_t free_ports(uint16_t count) {
  constexpr uint32_t kFirst = 14000, kAll = 18000, kStep = 12;
  static uint32_t next = static_cast<uint32_t>(::getpid()) % (kAll / kStep) * kStep;
  for (uint32_t tries = 0; tries < kAll; ++tries) {
    const uint32_t base = kFirst + next % (kAll - count);
    next += count;
    bool free = true;
    for (uint32_t port = base; port < base + count && free; ++port) {
      const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      sockaddr_in at{};
      at.sin_family = AF_INET;
      at.sin_port = htons(static_cast<uint16_t>(port));
      free = ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) == 0;
    }
    if (free) return static_cast<uint16_t>(base);
  }
  KVF_CHECK(false && "no port is free");
  return 0;
}

inline std::string free_address() {
  return "127.0.0.1:" + std::to_string(free_ports(1));
}

}  // namespace kvferry::test
