#include "http/json.h"

#include <algorithm>
#include <array>

namespace kvferry::http {

namespace {

// Bytes that stand for themselves in a JSON string.
constexpr std::array<bool, 256> kPlain = [] {
  std::array<bool, 256> plain{};
  for (size_t byte = 0x20; byte < plain.size(); ++byte) plain[byte] = byte != '"' && byte != '\\';
  return plain;
}();

}  // namespace

void append_json_string(std::string& out, std::string_view text) {
  constexpr std::string_view kHex = "0123456789abcdef";
  out.push_back('"');
  while (!text.empty()) {
    const auto special = static_cast<size_t>(
        std::find_if_not(text.begin(), text.end(), [](char c) { return kPlain[static_cast<unsigned char>(c)]; }) -
        text.begin());
    out.append(text.substr(0, special));
    if (special == text.size()) break;
    const char c = text[special];
    text.remove_prefix(special + 1);
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (c == '\n') {
      out.append("\\n");
    } else {
      out.append("\\u00");
      out.push_back(kHex[byte >> 4]);
      out.push_back(kHex[byte & 15]);
    }
  }
  out.push_back('"');
}

std::string error_body(int status, std::string_view message, std::string_view type) {
  if (type.empty()) {
    type = status == 401   ? "authentication_error"
           : status == 429 ? "rate_limit_error"
           : status < 500  ? "invalid_request_error"
                           : "server_error";
  }
  std::string out = R"({"error":{"message":)";
  append_json_string(out, message);
  out.append(R"(,"type":)");
  append_json_string(out, type);
  out.append(R"(,"param":null,"code":)");
  append_number(out, static_cast<uint64_t>(status));
  out.append("}}");
  return out;
}

Response error_response(int status, std::string_view message, std::string_view type) {
  Response response;
  response.status = status;
  response.body = error_body(status, message, type);
  if (status == 429 || status == 503) response.headers.add("Retry-After", "1");
  return response;
}

}  // namespace kvferry::http
