#include "http/auth.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>

#include "common/fd.h"

namespace kvferry::http {

bool equal_in_constant_time(std::string_view left, std::string_view right) {
  return left.size() == right.size() && CRYPTO_memcmp(left.data(), right.data(), left.size()) == 0;
}

bool authorized(const Headers& headers, std::string_view token) {
  if (token.empty()) return true;
  const auto value = headers.get("authorization");
  constexpr std::string_view kScheme = "Bearer ";
  if (!value || value->size() < kScheme.size() || !iequals(value->substr(0, kScheme.size()), kScheme)) return false;
  return equal_in_constant_time(value->substr(kScheme.size()), token);
}

Result<std::string> read_secret(std::string_view text) {
  if (!text.starts_with('@')) return std::string(text);
  const std::string path(text.substr(1));
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return errno_error("cannot open the key file " + path);
  struct stat facts {};
  if (::fstat(file.get(), &facts) != 0) return errno_error("cannot look at the key file " + path);
  if ((facts.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    return Error{ErrorCode::permission_denied, "others may use the key file " + path, "chmod 600 it", "", ""};
  }
  std::array<char, 4096> block;
  const ssize_t got = ::read(file.get(), block.data(), block.size());
  if (got < 0) return errno_error("cannot read the key file " + path);
  std::string secret(block.data(), static_cast<size_t>(got));
  while (!secret.empty() && (secret.back() == '\n' || secret.back() == '\r')) secret.pop_back();
  if (secret.empty()) return Error{ErrorCode::invalid_argument, "the key file is empty", "", "", path};
  return secret;
}

}  // namespace kvferry::http
