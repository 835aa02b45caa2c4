#include "common/secret.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/fd.h"

namespace kvferry {
namespace {

constexpr size_t kMaxFile = size_t{64} << 10;

}  // namespace

char* Secret::resize(size_t count) {
  wipe();
  bytes_.resize(count);
  return bytes_.data();
}

void Secret::wipe() {
  bytes_.resize(bytes_.capacity());  // what an earlier, longer content left behind its end
  OPENSSL_cleanse(bytes_.data(), bytes_.size());
  bytes_.clear();
}

Result<Secret> read_secret_file(const std::string& path) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file) return errno_error("cannot open the key file " + path);
  struct stat facts {};
  if (::fstat(file.get(), &facts) != 0) return errno_error("cannot look at the key file " + path);
  if (!S_ISREG(facts.st_mode)) return Error{ErrorCode::invalid_argument, "the key file " + path + " is no file"};
  if ((facts.st_mode & (S_IRWXG | S_IRWXO)) != 0)
    return Error{ErrorCode::permission_denied, "others may use the key file " + path, "chmod 600 it"};
  if (facts.st_uid != ::geteuid() && facts.st_uid != 0)
    return Error{ErrorCode::permission_denied, "the key file " + path + " belongs to another user"};
  Secret content;
  char* const room = content.resize(kMaxFile);
  size_t filled = 0;
  while (filled < kMaxFile) {
    const ssize_t count = ::read(file.get(), room + filled, kMaxFile - filled);
    if (count < 0) return errno_error("cannot read the key file " + path);
    if (count == 0) break;
    filled += static_cast<size_t>(count);
  }
  if (filled == kMaxFile) return Error{ErrorCode::invalid_argument, "the key file " + path + " is over 64 KiB"};
  return Secret(content.view().substr(0, filled));
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

}  // namespace kvferry
