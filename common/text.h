#pragma once

#include <string>
#include <string_view>

#include "common/api.h"

namespace kvferry {

// `text` as a JSON string, quotes included. Bytes that are no UTF-8 are passed on as they are.
KVFERRY_API std::string json_quote(std::string_view text);

}  // namespace kvferry
