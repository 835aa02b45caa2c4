#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace kvferry::test {

// An input that is a list of things that happen one after another: {u8 what, u16 length little-endian, bytes}. A record
// that ends early is the last one.
template <class Happen>
void for_each_record(std::string_view input, Happen&& happen) {
  while (input.size() >= 3) {
    const auto what = static_cast<uint8_t>(input[0]);
    const size_t length = static_cast<uint8_t>(input[1]) | size_t{static_cast<uint8_t>(input[2])} << 8;
    input.remove_prefix(3);
    const std::string_view bytes = input.substr(0, length);
    input.remove_prefix(bytes.size());
    happen(what, bytes);
  }
}

}  // namespace kvferry::test
