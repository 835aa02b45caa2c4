#pragma once

#include <sys/socket.h>

#include <compare>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace kvferry {

// A numeric IP address and port: "10.0.0.7:7100", "[::1]:7100".
struct Address {
  std::string host;
  uint16_t port = 0;

  std::string to_string() const;
  bool is_loopback() const;
  auto operator<=>(const Address&) const = default;
};

// "host:port" or "[v6]:port". With `resolve`, a host name is looked up (blocking: never on a loop).
Result<Address> parse_address(std::string_view text, bool resolve);

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
};
Result<SocketAddress> to_socket_address(const Address& address);
Address from_socket_address(const sockaddr_storage& storage);

// An address of this machine.
struct InterfaceAddress {
  std::string interface;
  std::string host;
};
// Those that need no interface's name to be used: none that are link-local.
std::vector<InterfaceAddress> interface_addresses();

// By what limits for one host are counted: "host:port" without the port, and of an IPv6 address its network of 64 bits,
// all of which one machine may have.
std::string network_of(const std::string& address);

}  // namespace kvferry
