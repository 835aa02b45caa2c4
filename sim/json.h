#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kvferry::sim {

// Writes one JSON text, with the commas put in where they belong. The caller balances open and close.
class JsonWriter {
 public:
  JsonWriter& open(char bracket);   // '{' or '['
  JsonWriter& close(char bracket);  // '}' or ']'
  JsonWriter& key(std::string_view name);
  // Bytes that are no UTF-8 are written as U+FFFD.
  JsonWriter& string(std::string_view text);
  JsonWriter& number(int64_t value);
  JsonWriter& number(double value);  // not finite: null
  JsonWriter& boolean(bool value);
  JsonWriter& null();

  std::string take() { return std::move(text_); }

 private:
  void separate();

  std::string text_;
  bool needs_comma_ = false;
};

}  // namespace kvferry::sim
