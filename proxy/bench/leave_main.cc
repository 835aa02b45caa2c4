// kvferry-proxy-leave: backends, and clients that leave at random moments, on one clock; prints one JSON line with how
// long after its client a prefiller's or decoder's connection was closed, and a parcel released. It waits for the proxy
// on --port, which is to be started with the other three ports.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstdio>
#include <map>

#include "common/random.h"
#include "http/client.h"
#include "proxy/bench/mock.h"

namespace kvferry {
namespace {

namespace asio = boost::asio;

struct Options {
  uint16_t port = 8000, prefill_port = 8100, decode_port = 8200, bootstrap_port = 8998;
  size_t clients = 16, requests = 2000, streams = 0;
  double leg_ms = 5, pace_ms = 20;
};

constexpr std::string_view kName = "leave-";
// What has not been told so long after a client left is counted as never.
constexpr Duration kPatience = std::chrono::seconds(5);

class Leaving {
 public:
  explicit Leaving(const Options& options) : options_(options) {
    proxy_.host = "127.0.0.1";
    proxy_.port = options.port;
    prefiller_.record = decoder_.record = false;
    prefiller_.behaviour.delay = decoder_.behaviour.delay = leg();
    decoder_.behaviour.event_pause = std::chrono::microseconds(static_cast<int64_t>(options.pace_ms * 1e3));
    decoder_.behaviour.events = 1'000'000;  // streams end with their clients
    prefiller_.on_request = [this](const http::Request& request) {
      owners_[proxy::mock::member_text(request.body, "transfer_id")] = name_of(request);
    };
    prefiller_.on_client_lost = [this](const http::Request& request) { note(prefill_closed_, name_of(request)); };
    decoder_.on_client_lost = [this](const http::Request& request) { note(decode_closed_, name_of(request)); };
    bootstrap_.on_release = [this](const std::string& transfer_id) { note(released_, owners_[transfer_id]); };
  }

  int run() {
    asio::co_spawn(loop_, begin(), asio::detached);
    while (!over() && loop_.run_one() > 0) {
    }
    report();
    return 0;
  }

 private:
  struct Left {
    TimePoint at;
    bool told = false;
  };

  Duration leg() const { return std::chrono::microseconds(static_cast<int64_t>(options_.leg_ms * 1e3)); }
  static std::string name_of(const http::Request& request) {
    return std::string(request.headers.get("x-request-id").value_or(""));
  }

  // Everybody has left, and what was to be told has been, or will not be.
  bool over() { return ended_ == options_.clients && (told_ == left_.size() || clock_.now() - last_left_ > kPatience); }

  void note(std::vector<double>& into, const std::string& name) {
    const auto left = left_.find(name);
    if (left == left_.end()) return;
    into.push_back(seconds(clock_.now() - left->second.at) * 1e3);
    if (!std::exchange(left->second.told, true)) ++told_;
  }

  asio::awaitable<void> sleep(Duration span) {
    asio::steady_timer timer(loop_);
    timer.expires_after(span);
    co_await timer.async_wait(asio::use_awaitable);
  }

  // Once the proxy says that it is ready.
  asio::awaitable<void> begin() {
    const TimePoint limit = clock_.now() + std::chrono::seconds(30);
    while (true) {
      http::Fetch probe;
      probe.url = proxy_;
      probe.target = "/health";
      const auto answer = co_await http::fetch(loop_, deadlines_, std::move(probe));
      if (answer.ok() && answer->head.status == 200) break;
      if (clock_.now() > limit) fail(answer.ok() ? "the proxy is not ready" : answer.error().to_string());
      co_await sleep(std::chrono::milliseconds(50));
    }
    for (size_t i = 0; i < options_.streams; ++i) asio::co_spawn(loop_, ask("stream", kNever), asio::detached);
    for (size_t i = 0; i < options_.clients; ++i) asio::co_spawn(loop_, client(), asio::detached);
  }

  [[noreturn]] static void fail(const std::string& why) {
    std::fprintf(stderr, "kvferry-proxy-leave: %s\n", why.c_str());
    std::exit(1);
  }

  asio::awaitable<void> client() {
    while (started_ < options_.requests) {
      const std::string name = std::string(kName) + std::to_string(started_++);
      const auto stay = static_cast<uint64_t>((leg() * 2).count());
      co_await ask(name, clock_.now() + Duration(static_cast<int64_t>(random_.below(stay))));
    }
    ++ended_;
  }

  // Asks for a stream and reads it until `leave`.
  asio::awaitable<void> ask(std::string name, TimePoint leave) {
    auto wire = co_await http::ClientConnection::connect(loop_, deadlines_, proxy_, std::chrono::seconds(30));
    if (!wire.ok()) fail(wire.error().to_string());
    const std::string body =
        R"({"model":"m","max_tokens":16,"stream":true,"prompt":")" + std::string(2048, 'p') + "\"}";
    const std::string head = "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n" +
                             std::string("X-Request-Id: ") + name +
                             "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n";
    const std::array<std::string_view, 2> pieces{head, body};
    const Status sent = co_await (*wire)->send(pieces);
    if (leave == kNever) {
      const auto answer = co_await (*wire)->read_head();
      (void)co_await (*wire)->pump([](std::string_view) { return true; });
      co_return;
    }
    if (leave > clock_.now()) co_await sleep(leave - clock_.now());
    if (!sent.ok()) co_return;
    last_left_ = clock_.now();
    left_[name].at = last_left_;
    (*wire)->close();
  }

  static void print(const char* name, std::vector<double>& values) {
    std::sort(values.begin(), values.end());
    const auto at = [&](double share) {
      return values.empty() ? 0 : values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
    };
    std::printf("\"%s\":{\"count\":%zu,\"p50_ms\":%.2f,\"p99_ms\":%.2f,\"max_ms\":%.2f},", name, values.size(), at(0.5),
                at(0.99), at(1));
  }

  void report() {
    std::printf("{\"left\":%zu,", left_.size());
    print("prefill_closed", prefill_closed_);
    print("decode_closed", decode_closed_);
    print("released", released_);
    std::printf("\"untold\":%zu}\n", left_.size() - told_);
  }

  const Options options_;
  asio::io_context loop_{1};
  SystemClock clock_;
  SeededRandom random_{1};
  http::Deadlines deadlines_{loop_, clock_};
  proxy::mock::MockServer prefiller_{loop_, deadlines_, options_.prefill_port};
  proxy::mock::MockServer decoder_{loop_, deadlines_, options_.decode_port};
  proxy::mock::MockBootstrap bootstrap_{loop_, deadlines_, options_.bootstrap_port};
  http::Url proxy_;
  size_t started_ = 0, ended_ = 0, told_ = 0;
  TimePoint last_left_{};
  std::map<std::string, Left> left_;                               // by request
  std::map<std::string, std::string> owners_;                      // transfer id -> request
  std::vector<double> prefill_closed_, decode_closed_, released_;  // milliseconds after the client
};

int run(int argc, char** argv) {
  Options options;
  CLI::App app{"Clients that leave, and what the proxy tells the backends of it"};
  app.add_option("--port", options.port, "Of the proxy");
  app.add_option("--prefill-port", options.prefill_port);
  app.add_option("--decode-port", options.decode_port);
  app.add_option("--bootstrap-port", options.bootstrap_port);
  app.add_option("--clients", options.clients, "That ask and leave, again and again");
  app.add_option("--requests", options.requests, "In all");
  app.add_option("--streams", options.streams, "That go on beside them, an event each --pace-ms");
  app.add_option("--pace-ms", options.pace_ms);
  app.add_option("--leg-ms", options.leg_ms, "How long a prefiller and a decoder take");
  CLI11_PARSE(app, argc, argv);
  return Leaving(options).run();
}

}  // namespace
}  // namespace kvferry

int main(int argc, char** argv) {
  return kvferry::run(argc, argv);
}
