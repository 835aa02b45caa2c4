#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "common/api.h"

namespace kvferry {

using ByteSpan = std::span<const std::byte>;
using MutableByteSpan = std::span<std::byte>;

inline ByteSpan as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// Appends little-endian integers and counted strings to a string. The wire is little-endian; so is every machine that
// this builds for (checked in bytes.cc).
class ByteWriter {
 public:
  explicit ByteWriter(std::string& out) : out_(out) {}

  template <class Integer>
  void put(Integer value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void put_bytes(std::string_view bytes) { out_.append(bytes); }
  // A u32 length, then the bytes.
  void put_string(std::string_view text) {
    put(static_cast<uint32_t>(text.size()));
    out_.append(text);
  }

 private:
  std::string& out_;
};

// Reads what ByteWriter wrote, from bytes that a stranger may have made: a read past the end returns zeros and makes
// `ok()` false for good, so a parser checks once at its end.
class ByteReader {
 public:
  explicit ByteReader(ByteSpan bytes) : rest_(bytes) {}

  template <class Integer>
  Integer get() {
    Integer value{};
    const ByteSpan bytes = get_bytes(sizeof value);
    if (!bytes.empty()) std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }
  ByteSpan get_bytes(size_t count);
  // A string of at most `limit` bytes; a longer one makes `ok()` false.
  std::string get_string(size_t limit);

  bool ok() const { return ok_; }
  bool at_end() const { return rest_.empty(); }
  ByteSpan rest() const { return rest_; }

 private:
  ByteSpan rest_;
  bool ok_ = true;
};

// Lower-case hexadecimal.
KVFERRY_API std::string to_hex(std::string_view bytes);

// Takes the same time whatever the contents are (not whatever the lengths are).
KVFERRY_API bool equal_secrets(std::string_view left, std::string_view right);

}  // namespace kvferry
