#include "bootstrap/paths.h"

#include <algorithm>
#include <array>
#include <utility>

#include "bootstrap/limits.h"

namespace kvferry::bootstrap {
namespace {

constexpr std::array<std::pair<std::string_view, Endpoint>, 7> kPages = {{
    {"register", Endpoint::registration},
    {"heartbeat", Endpoint::heartbeat},
    {"query", Endpoint::query},
    {"v1/workers", Endpoint::workers},
    {"v1/worker", Endpoint::worker},
    {"health", Endpoint::health},
    {"metrics", Endpoint::metrics},
}};
constexpr std::string_view kParcels = "v1/parcels/";

bool unreserved(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' || c == '-' ||
         c == '_' || c == '~';
}

bool valid_segment(std::string_view segment) {
  const bool dots = segment == "." || segment == "..";
  return !segment.empty() && segment.size() <= kMaxNamespaceSegment && !dots &&
         std::all_of(segment.begin(), segment.end(), [](char c) { return unreserved(c) && c != '~'; });
}

int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// The rest of a path behind its namespace.
bool parse_endpoint(std::string_view rest, Path& out) {
  for (const auto& [name, endpoint] : kPages) {
    if (rest != name) continue;
    out.endpoint = endpoint;
    return true;
  }
  if (!rest.starts_with(kParcels)) return false;
  auto id = percent_decode(rest.substr(kParcels.size()));
  if (!id || id->empty() || id->size() > kMaxTransferId) return false;
  out.endpoint = Endpoint::parcel;
  out.id = std::move(*id);
  return true;
}

}  // namespace

std::optional<Path> parse_path(std::string_view path) {
  if (!path.starts_with('/')) return std::nullopt;
  path.remove_prefix(1);
  Path out;
  size_t at = 0;  // where the rest behind the namespace begins
  for (size_t depth = 0; depth <= kMaxNamespaceDepth; ++depth) {
    const std::string_view rest = path.substr(at);
    if (parse_endpoint(rest, out)) {
      out.space = path.substr(0, at > 0 ? at - 1 : 0);
      return out;
    }
    if (rest.starts_with(kParcels)) return std::nullopt;  // with an id that is none; no namespace holds these words
    const size_t slash = path.find('/', at);
    if (slash == std::string_view::npos || !valid_segment(path.substr(at, slash - at))) return std::nullopt;
    at = slash + 1;
  }
  return std::nullopt;
}

std::optional<std::string> percent_decode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '%') {
      if (i + 2 >= text.size()) return std::nullopt;
      const int high = digit(text[i + 1]);
      const int low = digit(text[i + 2]);
      if (high < 0 || low < 0) return std::nullopt;
      c = static_cast<char>(high * 16 + low);
      i += 2;
    }
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return std::nullopt;
    out.push_back(c);
  }
  return out;
}

std::string percent_encode(std::string_view text) {
  constexpr std::string_view kHex = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (unreserved(c)) {
      out.push_back(c);
    } else {
      out.append({'%', kHex[byte >> 4], kHex[byte & 15]});
    }
  }
  return out;
}

bool valid_namespace(std::string_view space) {
  if (space.empty()) return true;
  const auto path = parse_path("/" + std::string(space) + "/query");
  return path && path->space == space;
}

}  // namespace kvferry::bootstrap
