#include "common/config.h"

#include <unistd.h>

#include <charconv>
#include <cmath>
#include <utility>

namespace kvferry {
namespace {

Error bad_value(const std::string& name, const std::string& value, std::string_view wanted) {
  return Error{ErrorCode::invalid_argument, name + " must be " + std::string(wanted) + ", not \"" + value + "\""};
}

// Splits "12.5ms" into 12.5 and "ms".
std::optional<std::pair<double, std::string_view>> number_and_unit(std::string_view text) {
  double number = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failure != std::errc() || number < 0 || !std::isfinite(number)) return std::nullopt;
  return std::pair{number, text.substr(static_cast<size_t>(end - text.data()))};
}

}  // namespace

Environment Environment::of_process() {
  std::map<std::string, std::string> values;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view pair(*entry);
    const size_t equals = pair.find('=');
    if (equals != std::string_view::npos) values.emplace(pair.substr(0, equals), pair.substr(equals + 1));
  }
  return Environment(std::move(values));
}

std::vector<std::pair<std::string, std::string>> Environment::with_prefix(const std::string& prefix) const {
  std::vector<std::pair<std::string, std::string>> out;
  for (auto entry = values_.lower_bound(prefix); entry != values_.end() && entry->first.starts_with(prefix); ++entry)
    if (!entry->second.empty()) out.emplace_back(entry->first.substr(prefix.size()), entry->second);
  return out;
}

std::optional<std::string> Environment::get(const std::string& name) const {
  const auto found = values_.find(name);
  if (found == values_.end() || found->second.empty()) return std::nullopt;
  return found->second;
}

Result<int64_t> Environment::integer(const std::string& name, int64_t fallback, int64_t low, int64_t high) const {
  const auto text = get(name);
  if (!text) return fallback;
  int64_t value = 0;
  const auto [end, failure] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (failure != std::errc() || end != text->data() + text->size() || value < low || value > high)
    return bad_value(name, *text, "an integer from " + std::to_string(low) + " to " + std::to_string(high));
  return value;
}

Result<bool> Environment::boolean(const std::string& name, bool fallback) const {
  const auto text = get(name);
  if (!text) return fallback;
  if (*text == "1" || *text == "true" || *text == "yes" || *text == "on") return true;
  if (*text == "0" || *text == "false" || *text == "no" || *text == "off") return false;
  return bad_value(name, *text, "0 or 1");
}

Result<Duration> Environment::duration(const std::string& name, Duration fallback) const {
  const auto text = get(name);
  if (!text) return fallback;
  auto parsed = parse_duration(*text);
  if (!parsed) return bad_value(name, *text, "a duration such as 30, 1.5s or 200ms");
  return parsed;
}

Result<uint64_t> Environment::size(const std::string& name, uint64_t fallback) const {
  const auto text = get(name);
  if (!text) return fallback;
  auto parsed = parse_size(*text);
  if (!parsed) return bad_value(name, *text, "a size such as 4096, 64K or 1G");
  return parsed;
}

Result<Duration> parse_duration(std::string_view text) {
  const auto parts = number_and_unit(text);
  static constexpr std::pair<std::string_view, double> kUnits[] = {{"", 1e9},   {"s", 1e9},  {"ms", 1e6},
                                                                   {"us", 1e3}, {"m", 60e9}, {"h", 3600e9}};
  for (const auto& [unit, nanoseconds] : kUnits) {
    if (!parts || parts->second != unit) continue;
    const double total = parts->first * nanoseconds;
    if (total > 9e18) break;
    return Duration(static_cast<int64_t>(total));
  }
  return Error{ErrorCode::invalid_argument, "not a duration: \"" + std::string(text) + "\""};
}

Result<uint64_t> parse_size(std::string_view text) {
  std::string_view number = text;
  for (const std::string_view suffix : {"iB", "B"})
    if (number.ends_with(suffix)) number.remove_suffix(suffix.size());
  const auto parts = number_and_unit(number);
  static constexpr std::pair<std::string_view, int> kUnits[] = {{"", 0},   {"K", 10}, {"k", 10},
                                                                {"M", 20}, {"G", 30}, {"T", 40}};
  for (const auto& [unit, shift] : kUnits) {
    if (!parts || parts->second != unit) continue;
    const double total = std::ldexp(parts->first, shift);
    if (total > 1e18) break;
    return static_cast<uint64_t>(total);
  }
  return Error{ErrorCode::invalid_argument, "not a size: \"" + std::string(text) + "\""};
}

std::vector<std::string> split_list(std::string_view text, char separator) {
  std::vector<std::string> parts;
  while (!text.empty()) {
    const size_t cut = text.find(separator);
    const std::string_view part = text.substr(0, cut);
    if (!part.empty()) parts.emplace_back(part);
    if (cut == std::string_view::npos) break;
    text.remove_prefix(cut + 1);
  }
  return parts;
}

}  // namespace kvferry
