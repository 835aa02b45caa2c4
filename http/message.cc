#include "http/message.h"

#include <algorithm>
#include <array>
#include <charconv>

namespace kvferry::http {
namespace {

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

// Calls `use` with each element of a comma-separated field value.
template <class Use>
void for_each_token(std::string_view list, Use use) {
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    std::string_view token = list.substr(0, comma);
    while (!token.empty() && (token.front() == ' ' || token.front() == '\t')) token.remove_prefix(1);
    while (!token.empty() && (token.back() == ' ' || token.back() == '\t')) token.remove_suffix(1);
    if (!token.empty()) use(token);
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
}

constexpr std::array<std::string_view, 9> kHopByHop = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te",
    "trailer",    "upgrade",    "transfer-encoding"};

// Of one message: fewer steps of growing.
constexpr size_t kUsualText = 512;
constexpr size_t kUsualFields = 12;

}  // namespace

bool iequals(std::string_view left, std::string_view right) {
  return left.size() == right.size() &&
         std::equal(left.begin(), left.end(), right.begin(), [](char a, char b) { return lower(a) == lower(b); });
}

void Request::clear(size_t most_kept) {
  if (body.capacity() > most_kept) std::string().swap(body);
  body.clear();
  method.clear();
  target.clear();
  headers.clear();
  framing = Framing::none;
  content_length = 0;
  expects_continue = false;
}

void Headers::add(std::string_view name, std::string_view value) {
  if (slots_.capacity() == 0) {
    text_.reserve(kUsualText);
    slots_.reserve(kUsualFields);
  }
  const auto name_at = static_cast<uint32_t>(text_.size());
  text_.append(name);
  const auto value_at = static_cast<uint32_t>(text_.size());
  text_.append(value);
  slots_.push_back({name_at, static_cast<uint32_t>(name.size()), value_at, static_cast<uint32_t>(value.size())});
}

void Headers::set(std::string_view name, std::string_view value) {
  erase(name);
  add(name, value);
}

void Headers::erase(std::string_view name) {
  std::erase_if(slots_, [&](const Slot& slot) { return iequals(view(slot.name_at, slot.name_size), name); });
}

std::optional<std::string_view> Headers::get(std::string_view wanted) const {
  for (size_t i = 0; i < size(); ++i) {
    if (iequals(name(i), wanted)) return value(i);
  }
  return std::nullopt;
}

size_t Headers::count(std::string_view wanted) const {
  size_t found = 0;
  for (size_t i = 0; i < size(); ++i) found += iequals(name(i), wanted) ? 1U : 0U;
  return found;
}

HopByHop::HopByHop(const Headers& headers) {
  for (size_t i = 0; i < headers.size(); ++i) {
    if (!iequals(headers.name(i), "connection")) continue;
    for_each_token(headers.value(i), [&](std::string_view token) { named_.push_back(token); });
  }
}

bool HopByHop::covers(std::string_view name) const {
  const auto same = [&](std::string_view known) { return iequals(known, name); };
  return std::any_of(kHopByHop.begin(), kHopByHop.end(), same) || std::any_of(named_.begin(), named_.end(), same);
}

std::optional<std::string_view> RequestHead::query(std::string_view name) const {
  const size_t mark = target.find('?');
  if (mark == std::string::npos) return std::nullopt;
  std::string_view rest = std::string_view(target).substr(mark + 1);
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('&'), rest.size());
    const std::string_view pair = rest.substr(0, end);
    const size_t equals = std::min(pair.find('='), pair.size());
    if (pair.substr(0, equals) == name) return pair.substr(std::min(equals + 1, pair.size()));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return std::nullopt;
}

std::string_view reason_phrase(int status) {
  switch (status) {
    case 100:
      return "Continue";
    case 200:
      return "OK";
    case 201:
      return "Created";
    case 202:
      return "Accepted";
    case 204:
      return "No Content";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 417:
      return "Expectation Failed";
    case 422:
      return "Unprocessable Content";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 502:
      return "Bad Gateway";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return "Status";
  }
}

void append_number(std::string& out, uint64_t number) {
  std::array<char, 20> digits;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), number).ptr;
  out.append(digits.data(), static_cast<size_t>(end - digits.data()));
}

void append_status_line(std::string& out, int status, std::string_view reason) {
  out.append("HTTP/1.1 ");
  append_number(out, static_cast<uint64_t>(status));
  out.push_back(' ');
  out.append(reason.empty() ? reason_phrase(status) : reason);
  out.append("\r\n");
}

void append_field(std::string& out, std::string_view name, std::string_view value) {
  out.append(name).append(": ").append(value).append("\r\n");
}

bool valid_field_value(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte == '\t' || (byte >= 0x20 && byte != 0x7f);
  });
}

}  // namespace kvferry::http
