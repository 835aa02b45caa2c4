#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/result.h"

namespace kvferry::http {

// "http://host:port/prefix" or "https://...". IPv6 hosts are written in brackets and kept without them.
struct Url {
  std::string host;
  uint16_t port = 80;
  std::string path;  // empty, or from its first '/', without a trailing one
  bool secure = false;

  // "host:port" or "[v6]:port", as a Host header wants it.
  std::string authority() const;
  std::string to_string() const;
};

// Also takes "host:port" without a scheme.
Result<Url> parse_url(std::string_view text, uint16_t default_port = 80);

}  // namespace kvferry::http
