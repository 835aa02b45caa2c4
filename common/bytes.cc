#include "common/bytes.h"

#include <openssl/crypto.h>

#include <bit>

namespace kvferry {

static_assert(std::endian::native == std::endian::little, "the wire format is written without byte swaps");

ByteSpan ByteReader::get_bytes(size_t count) {
  if (count > rest_.size()) {
    ok_ = false;
    rest_ = {};
    return {};
  }
  const ByteSpan taken = rest_.first(count);
  rest_ = rest_.subspan(count);
  return taken;
}

std::string ByteReader::get_string(size_t limit) {
  const auto length = get<uint32_t>();
  if (length > limit) {
    ok_ = false;
    rest_ = {};
    return {};
  }
  const ByteSpan bytes = get_bytes(length);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string to_hex(std::string_view bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const char byte : bytes) {
    const auto value = static_cast<unsigned char>(byte);
    out += kDigits[value >> 4];
    out += kDigits[value & 15];
  }
  return out;
}

bool equal_secrets(std::string_view left, std::string_view right) {
  return left.size() == right.size() && CRYPTO_memcmp(left.data(), right.data(), left.size()) == 0;
}

}  // namespace kvferry
