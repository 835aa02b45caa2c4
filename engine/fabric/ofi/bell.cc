#include "engine/fabric/ofi/bell.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string_view>
#include <utility>

namespace kvferry::ofi {
namespace {

constexpr int kMostCallers = 64;  // heard at once (I7); the others are heard the next time
constexpr std::string_view kPrefix = "kvferry-ofi/";

// In the abstract namespace: a zero, then the name; nothing is left behind in a folder.
std::string address_of(const Name& endpoint) {
  std::string out(1, '\0');
  out += kPrefix;
  for (const uint8_t byte : endpoint.bytes())
    if (byte != 0) out += static_cast<char>(byte);
  return out.substr(0, sizeof(sockaddr_un::sun_path));
}

socklen_t fill(sockaddr_un& out, const std::string& address) {
  out.sun_family = AF_UNIX;
  std::memcpy(out.sun_path, address.data(), address.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address.size());
}

// 0, or an error.
int ring_at(int socket, const std::string& address, uint64_t number) {
  sockaddr_un to{};
  const socklen_t size = fill(to, address);
  const auto* where = reinterpret_cast<const sockaddr*>(&to);
  return ::sendto(socket, &number, sizeof number, MSG_DONTWAIT | MSG_NOSIGNAL, where, size) < 0 ? errno : 0;
}

}  // namespace

std::unique_ptr<Bell> Bell::hang(const Name& endpoint) {
  std::unique_ptr<Bell> made(new Bell);
  made->at_door_ = !endpoint.empty();
  made->socket_ = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (made->socket_ < 0) return nullptr;
  sockaddr_un own{};
  // Without a name the kernel chooses an address.
  const socklen_t size = fill(own, endpoint.empty() ? "" : address_of(endpoint));
  const bool bound = ::bind(made->socket_, reinterpret_cast<const sockaddr*>(&own), size) == 0;
  return bound ? std::move(made) : nullptr;
}

Bell::~Bell() {
  if (socket_ >= 0) ::close(socket_);
}

// One that has not looked since the last rings has a full socket.
bool Bell::ring(const Name& owner, uint64_t number) const {
  return ring_at(socket_, address_of(owner), number) != ECONNREFUSED;
}

bool Bell::heard() {
  int count = 0;
  gone_.clear();
  for (; count < kMostCallers; ++count) {
    uint64_t number = 0;
    sockaddr_un from{};
    socklen_t size = sizeof from;
    if (::recvfrom(socket_, &number, sizeof number, MSG_DONTWAIT, reinterpret_cast<sockaddr*>(&from), &size) < 0) break;
    const size_t head = offsetof(sockaddr_un, sun_path);
    if (!at_door_)
      gone_.insert(number);
    else if (size > head)
      callers_.emplace_back(std::string(from.sun_path, std::min(size - head, sizeof from.sun_path)), number);
  }
  return count > 0;
}

void Bell::ring_back(const std::function<bool(uint64_t number)>& stands) {
  for (const auto& [caller, number] : std::exchange(callers_, {}))
    ring_at(socket_, caller, stands(number) ? 0 : number);
}

}  // namespace kvferry::ofi
