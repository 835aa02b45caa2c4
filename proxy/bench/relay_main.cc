// kvferry-proxy-relay: the least that any proxy must do, as a measure for the bench. Bytes from a client go to the
// decoder and back; with --prefill they go to the prefiller first, whose answer is dropped. Nothing is parsed: a
// request is whatever has come when the prefiller answers.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

namespace {

enum class Side { client, prefill, decode };

struct Path {
  int client = -1, prefill = -1, decode = -1;
  std::vector<char> request;
};

struct End {
  Path* path;
  Side side;
};

sockaddr_in local(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

int dial(uint16_t port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  const sockaddr_in address = local(port);
  const int one = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    ::close(fd);
    return -1;
  }
  return fd;
}

class Relay {
 public:
  Relay(uint16_t port, uint16_t prefill, uint16_t decode)
      : prefill_(prefill), decode_(decode), epoll_(::epoll_create1(0)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM, 0);
    const int one = 1;
    ::setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    const sockaddr_in address = local(port);
    if (::bind(listener_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) std::abort();
    ::listen(listener_, 4096);
    epoll_event event{};
    event.events = EPOLLIN;
    ::epoll_ctl(epoll_, EPOLL_CTL_ADD, listener_, &event);
  }

  void run() {
    std::array<epoll_event, 256> events;
    for (;;) {
      const int count = ::epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), -1);
      for (int i = 0; i < count; ++i) {
        auto* end = static_cast<End*>(events[static_cast<size_t>(i)].data.ptr);
        end ? move(*end) : accept();
      }
    }
  }

 private:
  void watch(Path* path, Side side, int fd) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = ends_.emplace_back(std::make_unique<End>(End{path, side})).get();
    ::epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event);
  }

  void accept() {
    auto* path = paths_.emplace_back(std::make_unique<Path>()).get();
    path->client = ::accept(listener_, nullptr, nullptr);
    path->decode = dial(decode_);
    const int one = 1;
    ::setsockopt(path->client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (prefill_ > 0) watch(path, Side::prefill, path->prefill = dial(prefill_));
    watch(path, Side::client, path->client);
    watch(path, Side::decode, path->decode);
  }

  void move(End& end) {
    Path& path = *end.path;
    const int from = end.side == Side::client ? path.client : end.side == Side::prefill ? path.prefill : path.decode;
    const ssize_t got = ::recv(from, block_.data(), block_.size(), 0);
    if (got <= 0) return shut(path);
    const auto size = static_cast<size_t>(got);
    if (end.side == Side::decode) return send(path.client, block_.data(), size);
    if (end.side == Side::prefill) {
      send(path.decode, path.request.data(), path.request.size());
      return path.request.clear();
    }
    if (prefill_ > 0) path.request.insert(path.request.end(), block_.data(), block_.data() + size);
    send(prefill_ > 0 ? path.prefill : path.decode, block_.data(), size);
  }

  static void send(int fd, const char* data, size_t size) {
    while (size > 0) {
      const ssize_t sent = ::send(fd, data, size, MSG_NOSIGNAL);
      if (sent <= 0) return;
      data += sent;
      size -= static_cast<size_t>(sent);
    }
  }

  static void shut(Path& path) {
    for (int* fd : {&path.client, &path.prefill, &path.decode}) {
      if (*fd >= 0) ::close(*fd);
      *fd = -1;
    }
  }

  const uint16_t prefill_, decode_;
  const int epoll_;
  int listener_ = -1;
  std::vector<std::unique_ptr<Path>> paths_;
  std::vector<std::unique_ptr<End>> ends_;
  std::array<char, 65536> block_;
};

}  // namespace

int main(int argc, char** argv) {
  uint16_t port = 8001, prefill = 0, decode = 8200;
  CLI::App app{"Bare TCP relay"};
  app.add_option("--port", port);
  app.add_option("--prefill", prefill, "Port of the prefiller; 0: only the decoder");
  app.add_option("--decode", decode, "Port of the decoder");
  CLI11_PARSE(app, argc, argv);
  auto relay = std::make_unique<Relay>(port, prefill, decode);
  std::puts("ready");
  std::fflush(stdout);
  relay->run();
}
