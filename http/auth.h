#pragma once

#include <string>
#include <string_view>

#include "common/result.h"
#include "http/message.h"

namespace kvferry::http {

// True if the Authorization header is "Bearer <token>". An empty token means: nobody is asked.
bool authorized(const Headers& headers, std::string_view token);

}  // namespace kvferry::http
