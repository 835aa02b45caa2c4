#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <chrono>
#include <cstring>
#include <string>

#include "common/fd.h"
#include "engine/fabric/tcp/wire.h"
#include "engine/io/address.h"
#include "engine/session/preface.h"
#include "proto/control.pb.h"

// Engines' wire spoken by hand, so that a test can lie.

namespace kvferry::test {

// One connection with blocking calls and a limit of 40 s on each.
class RawConnection {
 public:
  explicit RawConnection(UniqueFd fd) : fd_(std::move(fd)) {}
  // `from`: another address of this host, which is another host to an engine.
  static RawConnection dial(const std::string& address, const char* from = nullptr) {
    const auto parsed = parse_address(address, false);
    KVF_CHECK(parsed.ok());
    const auto raw = to_socket_address(*parsed);
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in at{};
    at.sin_family = AF_INET;
    KVF_CHECK(from == nullptr || (::inet_pton(AF_INET, from, &at.sin_addr) == 1 &&
                                  ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) == 0));
    KVF_CHECK(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&raw->storage), raw->length) == 0);
    return RawConnection(std::move(fd));
  }

  // False when the other side has closed.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t count = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(count));
    }
    return true;
  }
  // Exactly so many bytes; fewer when the other side closes or says nothing for the limit.
  std::string receive(size_t count) {
    std::string out;
    while (out.size() < count && wait_readable()) {
      char buffer[65536];
      const ssize_t got = ::recv(fd_.get(), buffer, std::min(sizeof buffer, count - out.size()), 0);
      if (got <= 0) break;
      out.append(buffer, static_cast<size_t>(got));
    }
    return out;
  }
  // Whether the other side closes or resets within the limit; what comes before is thrown away.
  bool is_closed() {
    while (wait_readable()) {
      char buffer[65536];
      if (::recv(fd_.get(), buffer, sizeof buffer, 0) <= 0) return true;
    }
    return false;
  }

  // As much of `bytes`, again and again, as the other side takes before it takes nothing for `patience`; at most
  // `limit`.
  size_t send_until_stuck(std::string_view bytes, size_t limit, std::chrono::milliseconds patience) {
    size_t sent = 0;
    for (size_t at = 0; sent < limit;) {
      pollfd event{fd_.get(), POLLOUT, 0};
      if (::poll(&event, 1, static_cast<int>(patience.count())) != 1 || (event.revents & (POLLERR | POLLHUP)) != 0)
        break;
      const ssize_t count = ::send(fd_.get(), bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (count <= 0) break;
      sent += static_cast<size_t>(count);
      at = (at + static_cast<size_t>(count)) % bytes.size();
    }
    return sent;
  }
  // How little the kernel keeps for who does not read.
  void read_little() {
    const int bytes = 4096;
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
  }
  void shut() { ::shutdown(fd_.get(), SHUT_RDWR); }

  bool send_frame(const proto::Frame& frame) { return send(encode(frame)); }
  static std::string encode(const proto::Frame& frame) {
    const std::string body = frame.SerializeAsString();
    std::string out;
    ByteWriter(out).put(static_cast<uint32_t>(body.size()));
    return out + body;
  }
  // The next session frame. An empty one when the connection ends.
  proto::Frame receive_frame() {
    const std::string head = receive(sizeof(uint32_t));
    uint32_t length = 0;
    if (head.size() != sizeof length) return {};
    std::memcpy(&length, head.data(), sizeof length);
    const std::string body = receive(length);
    proto::Frame frame;
    if (body.size() != length || !frame.ParseFromString(body)) return {};
    return frame;
  }
  // The next one of that kind; others are dropped.
  proto::Frame receive_frame(proto::Frame::BodyCase kind) {
    while (true) {
      proto::Frame frame = receive_frame();
      if (frame.body_case() == kind || frame.body_case() == proto::Frame::BODY_NOT_SET) return frame;
    }
  }

 private:
  bool wait_readable() const {
    pollfd event{fd_.get(), POLLIN, 0};
    return ::poll(&event, 1, 40000) == 1;
  }
  UniqueFd fd_;
};

// A port of this process on which it plays an engine.
class RawListener {
 public:
  RawListener() : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof at;
    KVF_CHECK(::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) == 0);
    KVF_CHECK(::listen(fd_.get(), 64) == 0);
    KVF_CHECK(::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&at), &length) == 0);
    address_ = "127.0.0.1:" + std::to_string(ntohs(at.sin_port));
  }
  const std::string& address() const { return address_; }
  // Waits for a connection; an empty descriptor after 40 s without one or after stop().
  UniqueFd accept() {
    pollfd event{fd_.get(), POLLIN, 0};
    if (::poll(&event, 1, 40000) != 1) return {};
    return UniqueFd(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  }
  void stop() { ::shutdown(fd_.get(), SHUT_RDWR); }

 private:
  UniqueFd fd_;
  std::string address_;
};

inline proto::Frame hello(const std::string& engine_id = "liar") {
  proto::Frame frame;
  frame.mutable_hello()->set_version_min(1);
  frame.mutable_hello()->set_version_max(1);
  frame.mutable_hello()->set_engine_id(engine_id);
  frame.mutable_hello()->set_incarnation(7);
  return frame;
}

inline std::string lane_frame(const tcp::Header& header, const std::string& table) {
  std::string out;
  tcp::Header sized = header;
  sized.table_bytes = static_cast<uint32_t>(table.size());
  tcp::encode_header(sized, out);
  return out + table;
}

inline std::string span_table(uint64_t region, uint64_t offset, uint32_t length) {
  std::string table;
  ByteWriter writer(table);
  writer.put(region);
  writer.put(uint32_t{1});
  writer.put(length);
  writer.put(offset);
  return table;
}

}  // namespace kvferry::test
