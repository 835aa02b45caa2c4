#include "http/url.h"

#include <algorithm>

namespace kvferry::http {
namespace {

Error bad_url(std::string_view text, std::string cause) {
  return {ErrorCode::invalid_argument, "not a usable URL: '" + std::string(text) + "'", std::move(cause), "", ""};
}

bool host_character(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' || c == '-' || c == '_';
}

}  // namespace

std::string Url::authority() const {
  const bool v6 = host.find(':') != std::string::npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

std::string Url::to_string() const {
  return (secure ? "https://" : "http://") + authority() + path;
}

Result<Url> parse_url(std::string_view text, uint16_t default_port) {
  std::string_view rest = text;
  const bool secure = rest.starts_with("https://");
  rest.remove_prefix(secure ? 8 : rest.starts_with("http://") ? 7 : 0);
  const size_t slash = std::min(rest.find('/'), rest.size());
  std::string_view authority = rest.substr(0, slash);
  Url url;
  url.port = secure && default_port == 80 ? uint16_t{443} : default_port;
  url.secure = secure;
  url.path = rest.substr(slash);
  while (url.path.ends_with('/')) url.path.pop_back();
  if (authority.starts_with('[')) {
    const size_t close = authority.find(']');
    if (close == std::string_view::npos) return bad_url(text, "no closing bracket");
    url.host = authority.substr(1, close - 1);
    const bool v6 =
        std::all_of(url.host.begin(), url.host.end(), [](char c) { return host_character(c) || c == ':' || c == '%'; });
    if (!v6 || url.host.find(':') == std::string::npos) return bad_url(text, "not an IPv6 address in the brackets");
    authority.remove_prefix(close + 1);
  } else {
    const size_t colon = std::min(authority.find(':'), authority.size());
    url.host = authority.substr(0, colon);
    if (!std::all_of(url.host.begin(), url.host.end(), host_character)) return bad_url(text, "odd host name");
    authority.remove_prefix(colon);
  }
  if (url.host.empty()) return bad_url(text, "no host");
  if (authority.empty()) return url;
  if (authority.front() != ':' || authority.size() < 2 || authority.size() > 6) return bad_url(text, "odd port");
  uint32_t port = 0;
  for (const char c : authority.substr(1)) {
    if (c < '0' || c > '9') return bad_url(text, "odd port");
    port = port * 10 + static_cast<uint32_t>(c - '0');
  }
  if (port == 0 || port > 65535) return bad_url(text, "port out of range");
  url.port = static_cast<uint16_t>(port);
  return url;
}

}  // namespace kvferry::http
