#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/api.h"
#include "common/clock.h"
#include "common/result.h"

namespace kvferry {

// The environment variables of a program, read once in main() or in a binding and handed down. The only getenv of the
// project is behind of_process().
class KVFERRY_API Environment {
 public:
  static Environment of_process();
  explicit Environment(std::map<std::string, std::string> values) : values_(std::move(values)) {}

  std::optional<std::string> get(const std::string& name) const;
  // Name without the prefix, and value, of all that are not empty.
  std::vector<std::pair<std::string, std::string>> with_prefix(const std::string& prefix) const;

  // The variable as a typed value; `fallback` when unset; an Error that names the variable when it does not parse.
  Result<int64_t> integer(const std::string& name, int64_t fallback, int64_t low, int64_t high) const;
  Result<bool> boolean(const std::string& name, bool fallback) const;
  Result<Duration> duration(const std::string& name, Duration fallback) const;
  Result<uint64_t> size(const std::string& name, uint64_t fallback) const;

 private:
  std::map<std::string, std::string> values_;
};

// "30", "30s", "1.5s", "200ms", "50us", "2m" -> a duration; a bare number is seconds.
KVFERRY_API Result<Duration> parse_duration(std::string_view text);

// "4096", "4K", "64M", "1G" (powers of 1024, an optional B or iB behind) -> bytes.
KVFERRY_API Result<uint64_t> parse_size(std::string_view text);

// "a,b,,c" -> {"a", "b", "c"}.
KVFERRY_API std::vector<std::string> split_list(std::string_view text, char separator = ',');

}  // namespace kvferry
