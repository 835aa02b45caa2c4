#include "http/auth.h"

#include "common/bytes.h"

namespace kvferry::http {

bool authorized(const Headers& headers, std::string_view token) {
  if (token.empty()) return true;
  const auto value = headers.get("authorization");
  constexpr std::string_view kScheme = "Bearer ";
  if (!value || value->size() < kScheme.size() || !iequals(value->substr(0, kScheme.size()), kScheme)) return false;
  return equal_secrets(value->substr(kScheme.size()), token);
}

}  // namespace kvferry::http
