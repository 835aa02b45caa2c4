#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/result.h"
#include "http/url.h"
#include "proxy/route.h"

namespace kvferry::proxy {

// What POST /admin/backends asks for. Pure.
struct Change {
  std::string action;  // as it was given
  Role role = Role::decode;
  http::Url url;
  std::optional<uint16_t> bootstrap_port;
};

// Errors are for the administrator: 400.
Result<Change> read_change(const std::string& body);

}  // namespace kvferry::proxy
