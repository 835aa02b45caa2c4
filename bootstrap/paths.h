#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace kvferry::bootstrap {

enum class Endpoint { registration, heartbeat, query, workers, worker, parcel, health, metrics };

// Where a request goes: "/<namespace>/v1/parcels/<id>" and the like.
struct Path {
  Endpoint endpoint = Endpoint::health;
  std::string space;  // without slashes at its ends; empty: the default namespace
  std::string id;     // of a parcel, decoded
};

// `path` without its query. Nothing: no such page. The endpoint is the first one that fits, so a namespace cannot hide
// behind it. Namespaces have at most kMaxNamespaceDepth segments of letters, digits, '.', '_' and '-'.
std::optional<Path> parse_path(std::string_view path);

// %xx decoded; nothing when that is malformed or gives a control character.
std::optional<std::string> percent_decode(std::string_view text);
// Everything but unreserved characters (RFC 3986) as %xx.
std::string percent_encode(std::string_view text);

bool valid_namespace(std::string_view space);

}  // namespace kvferry::bootstrap
