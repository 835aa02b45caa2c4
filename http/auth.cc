#include "http/auth.h"

#include "common/bytes.h"
#include "common/secret.h"

namespace kvferry::http {

bool authorized(const Headers& headers, std::string_view token) {
  if (token.empty()) return true;
  const auto value = headers.get("authorization");
  constexpr std::string_view kScheme = "Bearer ";
  if (!value || value->size() < kScheme.size() || !iequals(value->substr(0, kScheme.size()), kScheme)) return false;
  return equal_secrets(value->substr(kScheme.size()), token);
}

Result<std::string> read_secret(std::string_view text) {
  if (!text.starts_with('@')) return std::string(text);
  const std::string path(text.substr(1));
  KVF_ASSIGN_OR_RETURN(const Secret content, read_secret_file(path));
  std::string_view secret = content.view();
  while (!secret.empty() && (secret.back() == '\n' || secret.back() == '\r')) secret.remove_suffix(1);
  if (secret.empty()) return Error{ErrorCode::invalid_argument, "the key file is empty", "", "", path};
  return std::string(secret);
}

}  // namespace kvferry::http
