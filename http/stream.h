#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "common/result.h"
#include "http/readiness.h"
#include "http/tls.h"

namespace kvferry::http {

// One TCP connection, perhaps inside TLS. Internal to http/: servers and clients are built on it.
//
// Plain sockets are read without a buffer of their own: wait until readable, then receive into a block that the whole
// loop shares, so that thousands of idle streams cost no memory.
class Stream {
 public:
  using Socket = boost::asio::ip::tcp::socket;

  explicit Stream(Socket socket);
  // TLS, as a server or, with the name of the host that was asked for, as a client; `handshake()` comes first.
  Stream(Socket socket, TlsContext& context);
  Stream(Socket socket, TlsContext& context, const std::string& host);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  boost::asio::awaitable<Status> handshake();

  // What the kernel buffers counts as well (I6): for streams that nobody reads it takes a megabyte each, and once all
  // of them are too much it ends connections of everybody on the host (tcp_mem). The peer may send no more than 64 KiB
  // ahead of what is received here;
  void bound_input();
  // and no more than 32 KiB are taken to be sent ahead of what the peer's window lets out.
  void bound_output();

  // What is there now, at most one block; valid until the next receive on this loop. An empty view: nothing yet.
  // Error peer_lost: the other side closed; in TLS only a close that it has signed is an "end of stream".
  Result<std::string_view> receive_now();
  // The same into the caller's memory; 0: nothing yet.
  Result<size_t> receive_into(std::span<char> target);
  // Returns when receive_now() has something to say, or the stream was closed here. With `step`, which is called
  // instead of waking the caller: when it has returned false.
  boost::asio::awaitable<void> wait_readable(std::function<bool()> step = {});
  // The same with a callback; at most one of both at a time. REQUIRES: the callback keeps the Stream alive.
  void on_readable(std::function<void()> ready);

  // Sends everything, gathered; pieces and what they show must stay valid until it returns. `progress` is called after
  // each part that went out.
  boost::asio::awaitable<Status> send(std::span<const std::string_view> pieces,
                                      const std::function<void()>& progress = {});
  // Sends as much as the kernel takes now; returns how much. TLS takes nothing this way.
  Result<size_t> send_now(std::string_view bytes);

  // Both directions, at once; what waits here ends. `reset`: with RST, so that the peer notices even if it only writes.
  void close(bool reset = false);
  bool closed() const { return closed_; }
  // True if an idle connection can be used again: nothing to read, not closed by the peer.
  bool quiet_idle();
  std::string remote_address() const;
  Socket& socket() { return socket_; }

 private:
  struct Tls;
  void prepare();
  // As recv(2), with what it says of the socket noted.
  ssize_t receive(std::span<char> target);
  Result<std::string_view> receive_tls();
  size_t split_tls(std::span<char> target);
  boost::asio::awaitable<Status> send_tls(std::string_view bytes);

  Readiness::Socket socket_;
  std::unique_ptr<Readiness> readiness_;  // not with TLS, whose own reads would wait behind it
  std::unique_ptr<Tls> tls_;
  bool closed_ = false;
};

// How much one receive takes at most: also the bound of what waits for a slow reader (I6).
constexpr size_t kBlockBytes = 16 << 10;

}  // namespace kvferry::http
