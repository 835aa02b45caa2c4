#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "engine/io/epoll_loop.h"
#include "engine/io/stream.h"

namespace kvferry {

struct SocketOptions {
  int backlog = 1024;
  int buffer_bytes = 0;              // SO_SNDBUF and SO_RCVBUF; 0 leaves the kernel's own tuning
  std::string congestion;            // TCP_CONGESTION; empty leaves the system's
  std::chrono::seconds silence{12};  // without a sign of the other side's kernel: the connection is lost
};

// TCP sockets on an EpollLoop, which must outlive every stream and listener.
class SocketNetwork final : public Network {
 public:
  SocketNetwork(EpollLoop& loop, SocketOptions options) : loop_(loop), options_(std::move(options)) {}

  Result<std::unique_ptr<Listener>> listen(const Address& address, Accepted accepted) override;
  Result<std::unique_ptr<Stream>> dial(const Address& address) override;

 private:
  EpollLoop& loop_;
  const SocketOptions options_;
};

}  // namespace kvferry
