#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/check.h"
#include "engine/io/address.h"

// Where a peer's fabric listens comes as text in its welcome. What counts as an address can be dialled, and means the
// same when it is written down and read again.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvferry;
  const auto told = parse_address({reinterpret_cast<const char*>(data), size}, false);
  if (!told) return 0;
  KVF_CHECK(told->host.find_first_not_of("0123456789abcdefABCDEF.:") == std::string::npos);
  const auto again = parse_address(told->to_string(), false);
  KVF_CHECK(again.ok() && *again == *told);
  KVF_CHECK(told->host.find(":") != std::string::npos || network_of(told->to_string()) == told->host);
  const auto raw = to_socket_address(*told);
  KVF_CHECK(raw.ok());
  const Address dialled = from_socket_address(raw->storage);
  KVF_CHECK(dialled.port == told->port);
  const auto same = to_socket_address(dialled);
  KVF_CHECK(same.ok() && from_socket_address(same->storage) == dialled);
  if (dialled.is_loopback()) KVF_CHECK(told->is_loopback() || told->host.find(':') != std::string::npos);
  if (told->is_loopback()) KVF_CHECK(dialled.is_loopback());
  return 0;
}
