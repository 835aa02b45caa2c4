#pragma once

#include <string>
#include <string_view>

#include "http/message.h"

namespace kvferry::http {

// Appends `text` as a JSON string with its quotes. Bytes that are not UTF-8 are passed on as they are.
void append_json_string(std::string& out, std::string_view text);

// {"error":{"message":...,"type":...,"param":null,"code":<status>}}: the shape that OpenAI's clients read.
std::string error_body(int status, std::string_view message, std::string_view type = {});
Response error_response(int status, std::string_view message, std::string_view type = {});

}  // namespace kvferry::http
