#pragma once

#include <gtest/gtest.h>

#include <array>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "common/log.h"
#include "proxy/bench/mock.h"
#include "proxy/proxy.h"

namespace kvferry::proxy {

using namespace std::chrono_literals;

// A client that shows every byte. It reads all the time unless told not to.
class RawClient {
 public:
  RawClient(boost::asio::io_context& loop, uint16_t port) : socket_(loop) {
    socket_.connect({boost::asio::ip::make_address("127.0.0.1"), port});
    read();
  }
  ~RawClient() { leave(); }

  // Returns before a large text is out: the proxy runs on the same thread. One at a time.
  void send(std::string text) {
    sending_ = std::move(text);
    boost::asio::async_write(socket_, boost::asio::buffer(sending_), [](const boost::system::error_code&, size_t) {});
  }
  void leave() {
    *alive_ = false;
    boost::system::error_code ignored;
    socket_.close(ignored);
  }
  const std::string& received() const { return received_; }
  bool closed() const { return closed_; }
  int status() const { return received_.size() > 12 ? std::atoi(received_.c_str() + 9) : 0; }
  std::string body() const {
    const size_t end = received_.find("\r\n\r\n");
    return end == std::string::npos ? std::string() : received_.substr(end + 4);
  }
  bool has(const std::string& text) const { return received_.find(text) != std::string::npos; }

 private:
  void read() {
    socket_.async_read_some(boost::asio::buffer(block_),
                            [this, alive = alive_](const boost::system::error_code& error, size_t got) {
                              if (!*alive) return;
                              received_.append(block_.data(), got);
                              closed_ = static_cast<bool>(error);
                              if (!error) read();
                            });
  }
  boost::asio::ip::tcp::socket socket_;
  std::array<char, 65536> block_;
  std::string received_;
  std::string sending_;
  bool closed_ = false;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

// The machine's clock, which a test may set forward. What a limit of minutes ends then ends at once, and whatever comes
// before that limit has all the time that a machine may take for it.
class ForwardClock final : public Clock {
 public:
  TimePoint now() const override { return real_.now() + ahead_; }
  void forward(Duration span) { ahead_ += span; }

 private:
  SystemClock real_;
  Duration ahead_{0};
};

// One prefiller with its bootstrap server, one decoder, one proxy; real sockets, one thread, one loop.
class ProxySystem : public testing::Test {
 protected:
  ProxySystem() {
    config.port = 0;
    config.admin_port = 0;
    config.access_log = "none";
    config.min_prompt_bytes = 0;
    config.health_interval = 50ms;
    config.connect_timeout = 1min;  // two lost packets on a bad link are three seconds
    config.log_level = LogLevel::off;
  }
  ~ProxySystem() override { proxy.reset(); }

  void start() {
    if (config.prefill.empty()) add_prefill(prefiller, bootstrap.port());
    if (config.decode.empty()) add_decode(decoder);
    auto made = Proxy::create(loop, deadlines, random, make_null_logger(), config);
    ASSERT_TRUE(made.ok()) << made.error().to_string();
    proxy = std::move(*made);
    // Probed once, so that the first request of a test meets a settled proxy.
    const size_t queries = bootstrap.queries;
    const bool asks = config.prefill[0].bootstrap_port == bootstrap.port();
    ASSERT_TRUE(!asks || until([&] { return bootstrap.queries > queries; }));
    run_for(20ms);
    settle();
  }
  // Whether the page of metrics has this line, now or soon.
  bool shows(const std::string& line) {
    return until([&] { return exposition().find(line + "\n") != std::string::npos; });
  }
  void add_prefill(const mock::MockServer& server, std::optional<uint16_t> bootstrap_port) {
    config.prefill.push_back({*http::parse_url(server.url()), bootstrap_port});
  }
  void add_decode(const mock::MockServer& server) { config.decode.push_back(*http::parse_url(server.url())); }

  // The limit is for a broken test: longer than this machine ever stands still.
  template <class Condition>
  bool until(Condition condition) {
    const SystemClock real;
    const TimePoint end = real.now() + 30s;
    while (!condition()) {
      if (real.now() >= end) return false;
      loop.restart();
      loop.run_one_for(5ms);
    }
    return true;
  }
  void run_for(Duration span) {
    const SystemClock real;
    const TimePoint end = real.now() + span;
    while (real.now() < end) {
      loop.restart();
      loop.run_one_for(1ms);
    }
  }

  // Everything that needs no time has happened when this returns.
  void settle() {
    do loop.restart();
    while (loop.poll() > 0);
  }

  static std::string request(const std::string& path, const std::string& body, const std::string& more = "") {
    return "POST " + path + " HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n" + more +
           "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  }
  std::unique_ptr<RawClient> client() { return std::make_unique<RawClient>(loop, proxy->port()); }

  // Sends these bytes, then one more a second, until the proxy closes: how many those were, or nothing when it never
  // did.
  std::optional<int> trickle(RawClient& slow, const std::string& begin) {
    slow.send(begin);
    settle();
    int sent = 0;
    const bool closed = until([&] {
      clock.forward(1s);
      if (!slow.closed()) slow.send("a"), ++sent;
      settle();
      return slow.closed();
    });
    return closed ? std::optional(sent) : std::nullopt;
  }

  // The whole answer to one request on a connection of its own.
  std::unique_ptr<RawClient> ask(const std::string& body, const std::string& path = "/v1/completions",
                                 const std::string& more = "") {
    auto asked = client();
    asked->send(request(path, body, "Connection: close\r\n" + more));
    EXPECT_TRUE(until([&] { return asked->closed(); }));
    return asked;
  }
  bool nothing_pinned() { return shows("kvferry_proxy_parcels_pinned 0"); }
  std::string exposition() const { return proxy->metrics().registry.expose(); }

  // Longer than any threshold, so that it is split.
  const std::string kPrompt = R"({"model":"m","prompt":"tell me a story about ferries","max_tokens":8})";
  const std::string kStream = R"({"model":"m","prompt":"tell me a story about ferries","max_tokens":8,"stream":true})";

  boost::asio::io_context loop{1};
  ForwardClock clock;
  http::Deadlines deadlines{loop, clock};
  SeededRandom random{7};
  mock::MockServer prefiller{loop, deadlines};
  mock::MockServer decoder{loop, deadlines};
  mock::MockBootstrap bootstrap{loop, deadlines};
  ProxyConfig config;
  std::unique_ptr<Proxy> proxy;
};

}  // namespace kvferry::proxy
