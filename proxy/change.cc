#include "proxy/change.h"

#include <simdjson.h>

#include "proxy/config.h"

namespace kvferry::proxy {

Result<Change> read_change(const std::string& body) {
  const auto fault = [](std::string message) {
    return Error{ErrorCode::invalid_argument, std::move(message), "", "", "admin"};
  };
  simdjson::dom::parser parser;
  simdjson::dom::object object;
  if (parser.parse(body).get_object().get(object)) return fault("the body is not a JSON object");
  std::string_view action, role, url;
  if (object["action"].get_string().get(action)) return fault("\"action\" is missing");
  if (object["role"].get_string().get(role)) return fault("\"role\" is missing");
  if (object["url"].get_string().get(url)) return fault("\"url\" is missing");
  if (role != "prefill" && role != "decode") return fault("\"role\" is prefill or decode");
  Change change;
  change.action = action;
  change.role = role == "prefill" ? Role::prefill : Role::decode;
  KVF_ASSIGN_OR_RETURN(change.url, parse_backend_url(url));
  uint64_t port = 0;
  if (!object["bootstrap_port"].get_uint64().get(port)) {
    if (port == 0 || port > 65535) return fault("\"bootstrap_port\" is out of range");
    change.bootstrap_port = static_cast<uint16_t>(port);
  }
  return change;
}

}  // namespace kvferry::proxy
