#include "engine/fabric/ofi/name.h"

#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string_view>

namespace kvferry::ofi {
namespace {

constexpr char kDigits[] = "0123456789abcdef";
constexpr std::string_view kShared = "fi_shm://";
constexpr char kMark = 'x';  // hexadecimal digits follow: no socket's address begins with it

sa_family_t family_of(const std::vector<uint8_t>& bytes) {
  sa_family_t family = 0;
  if (bytes.size() >= sizeof family) std::memcpy(&family, bytes.data(), sizeof family);
  return family;
}

// Where the host lies in a socket's address.
std::pair<size_t, size_t> host_field(sa_family_t family) {
  if (family == AF_INET6) return {offsetof(sockaddr_in6, sin6_addr), sizeof(in6_addr)};
  return {offsetof(sockaddr_in, sin_addr), sizeof(in_addr)};
}

// Containers may share memory, and have process numbers of their own. The process's number comes next, and then what
// libfabric adds.
constexpr std::string_view kNowhere = "kvferry:0-";  // without /proc
std::string names_here() {
  struct stat numbers {};
  if (::stat("/proc/self/ns/pid", &numbers) != 0) return std::string(kNowhere);
  return "kvferry:" + std::to_string(numbers.st_ino) + "-";
}

}  // namespace

Name Name::parse(const std::string& text) {
  if (text.empty()) return {};
  std::vector<uint8_t> bytes;
  if (text[0] != kMark) {
    const auto address = plugin_kit::SocketAddress::parse(text);
    const auto* begin = reinterpret_cast<const uint8_t*>(address.get());
    bytes.assign(begin, begin + address.size());
    return Name(std::move(bytes));
  }
  for (size_t i = 1; i + 1 < text.size(); i += 2) {
    const char* const end = kDigits + 16;
    const char* const high = std::find(kDigits, end, text[i]);
    const char* const low = std::find(kDigits, end, text[i + 1]);
    if (high == end || low == end) return {};
    bytes.push_back(static_cast<uint8_t>((high - kDigits) * 16 + (low - kDigits)));
  }
  Name out(std::move(bytes));
  return out.is_socket() ? Name() : out;
}

std::string Name::to_text() const {
  if (is_socket()) return plugin_kit::SocketAddress(bytes_.data(), bytes_.size()).to_text();
  std::string out(1, kMark);
  for (const uint8_t byte : bytes_) {
    out += kDigits[byte / 16];
    out += kDigits[byte % 16];
  }
  return out;
}

bool Name::is_socket() const {
  const sa_family_t family = family_of(bytes_);
  return (family == AF_INET && bytes_.size() == sizeof(sockaddr_in)) ||
         (family == AF_INET6 && bytes_.size() == sizeof(sockaddr_in6));
}

bool Name::is_shared_memory() const {
  return bytes_.size() > kShared.size() && std::equal(kShared.begin(), kShared.end(), bytes_.begin()) &&
         std::find(bytes_.begin(), bytes_.end(), 0) == bytes_.end() - 1;
}

std::string Name::of_this_process() {
  return names_here() + std::to_string(::getpid());
}

bool Name::is_of_this_process() const {
  const std::string own = std::string(kShared) + of_this_process() + ":";
  return bytes_.size() > own.size() && std::equal(own.begin(), own.end(), bytes_.begin());
}

void Name::remove_leftovers() {
  const std::string prefix = names_here();
  if (prefix == kNowhere) return;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm", error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(prefix)) continue;
    const pid_t owner = std::atoi(name.c_str() + prefix.size());
    if (owner > 0 && ::kill(owner, 0) != 0 && errno == ESRCH) ::shm_unlink(("/" + name).c_str());
  }
}

bool Name::is_wildcard() const {
  if (!is_socket()) return false;
  const auto [at, size] = host_field(family_of(bytes_));
  const auto host = bytes_.begin() + static_cast<std::ptrdiff_t>(at);
  return std::all_of(host, host + static_cast<std::ptrdiff_t>(size), [](uint8_t byte) { return byte == 0; });
}

Name Name::at_host_of(const Name& other) const {
  if (!is_socket() || !other.is_socket() || family_of(bytes_) != family_of(other.bytes_)) return *this;
  const auto [at, size] = host_field(family_of(bytes_));
  Name out = *this;
  std::copy_n(other.bytes_.begin() + static_cast<std::ptrdiff_t>(at), size,
              out.bytes_.begin() + static_cast<std::ptrdiff_t>(at));
  return out;
}

// Connecting a UDP socket sends nothing and chooses a route.
Name Name::as_seen_by(const Name& peer) const {
  const int fd = ::socket(family_of(peer.bytes_), SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return *this;
  sockaddr_storage own{};
  socklen_t size = sizeof own;
  const bool known = ::connect(fd, reinterpret_cast<const sockaddr*>(peer.bytes_.data()),
                               static_cast<socklen_t>(peer.bytes_.size())) == 0 &&
                     ::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size) == 0;
  ::close(fd);
  const auto* begin = reinterpret_cast<const uint8_t*>(&own);
  return known ? at_host_of(Name(std::vector<uint8_t>(begin, begin + size))) : *this;
}

}  // namespace kvferry::ofi
