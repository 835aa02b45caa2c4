#pragma once

#include <string>
#include <string_view>

#include "common/result.h"
#include "http/message.h"

namespace kvferry::http {

// True if the Authorization header is "Bearer <token>". An empty token means: nobody is asked.
bool authorized(const Headers& headers, std::string_view token);

// A secret given on a command line or in a config: "@path" reads it from a file, which must be nobody else's to read.
Result<std::string> read_secret(std::string_view text);

}  // namespace kvferry::http
