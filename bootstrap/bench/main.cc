// How many GET /query a bootstrap server answers to many clients at once, each with a kept connection. One line of
// JSON.
//   kvferry-bootstrap-bench [--url http://host:port] [--clients 200] [--seconds 5] [--rate 0] [--workers 64]
// Without --url it starts a server of its own in this process. --restarts N measures those instead.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstdio>
#include <string>
#include <vector>

#include "bootstrap/bench/restarts.h"
#include "bootstrap/bodies.h"
#include "bootstrap/server.h"
#include "http/client.h"

namespace {

namespace asio = boost::asio;
using namespace kvferry;  // NOLINT(google-build-using-namespace): a program of its own

struct Options {
  std::string url;
  size_t clients = 200;
  double seconds = 5;
  double rate = 0;  // requests a second of all clients; 0: as fast as answers come
  uint32_t workers = 64;
  int restarts = 0;
};

struct Load {
  Load(asio::io_context& loop_in, http::Deadlines& deadlines_in, http::Url url_in, const Options& options_in)
      : loop(loop_in), deadlines(deadlines_in), url(std::move(url_in)), options(options_in) {}
  asio::io_context& loop;
  http::Deadlines& deadlines;
  const http::Url url;
  const Options options;
  TimePoint end{};
  std::vector<double> latencies;  // seconds
  uint64_t failed = 0;
};

asio::awaitable<bool> query(http::ClientConnection& wire, const std::string& request) {
  const std::array<std::string_view, 1> pieces{request};
  const Status sent = co_await wire.send(pieces);
  if (!sent.ok()) co_return false;
  const auto head = co_await wire.read_head();
  if (!head.ok() || head->status != 200) co_return false;
  const auto body = co_await http::read_whole_body(wire, 64 << 20);
  co_return body.ok() && wire.reusable();
}

asio::awaitable<void> client(Load& load, size_t number) {
  const std::string request = "GET " + load.url.path + "/query HTTP/1.1\r\nHost: " + load.url.authority() + "\r\n\r\n";
  auto wire = co_await http::ClientConnection::connect(load.loop, load.deadlines, load.url, std::chrono::seconds(5));
  if (!wire.ok()) {
    ++load.failed;
    co_return;
  }
  const auto count = static_cast<double>(load.options.clients);
  const auto step = std::chrono::duration_cast<Duration>(
      std::chrono::duration<double>(load.options.rate > 0 ? count / load.options.rate : 0));
  TimePoint due = load.deadlines.now() + step * static_cast<int64_t>(number) / static_cast<int64_t>(count);
  asio::steady_timer timer(load.loop);
  while (load.deadlines.now() < load.end) {
    if (step > Duration(0)) {
      timer.expires_at(due);
      co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
    } else {
      due = load.deadlines.now();
    }
    // From when it was due: a server that falls behind is not flattered.
    const bool answered = co_await query(**wire, request);
    if (!answered) {
      ++load.failed;
      co_return;
    }
    load.latencies.push_back(seconds(load.deadlines.now() - due));
    due += step;
  }
}

double percentile(std::vector<double>& sorted, double part) {
  return sorted.empty() ? 0 : sorted[static_cast<size_t>(part * static_cast<double>(sorted.size() - 1))];
}

int report(Load& load) {
  std::sort(load.latencies.begin(), load.latencies.end());
  const auto done = static_cast<double>(load.latencies.size());
  std::printf(R"({"clients":%zu,"workers":%u,"seconds":%.1f,"requests":%.0f,"failed":%llu,"per_second":%.0f,)"
              R"("p50_ms":%.3f,"p99_ms":%.3f,"max_ms":%.3f})"
              "\n",
              load.options.clients, load.options.workers, load.options.seconds, done,
              static_cast<unsigned long long>(load.failed), done / load.options.seconds,
              1e3 * percentile(load.latencies, 0.5), 1e3 * percentile(load.latencies, 0.99),
              1e3 * percentile(load.latencies, 1));
  return load.failed == 0 ? 0 : 1;
}

asio::awaitable<void> run(Load& load) {
  for (uint32_t tp = 0; tp < load.options.workers; ++tp) {
    bootstrap::Registration worker;
    worker.engine_id = "bench-engine";
    worker.rank.tp = tp;
    worker.addr = "tcp://127.0.0.1:" + std::to_string(20000 + tp);
    http::Fetch fetch;
    fetch.method = "POST";
    fetch.url = load.url;
    fetch.target = "/register";
    fetch.body = bootstrap::format_registration(worker);
    const auto answer = co_await http::fetch(load.loop, load.deadlines, std::move(fetch));
    if (!answer.ok() || answer->head.status != 200) ++load.failed;
  }
  load.end =
      load.deadlines.now() + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(load.options.seconds));
  for (size_t i = 0; i < load.options.clients; ++i) asio::co_spawn(load.loop, client(load, i), asio::detached);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Loads a bootstrap server with GET /query", "kvferry-bootstrap-bench");
  app.add_option("--url", options.url, "Of the server; default: one in this process");
  app.add_option("--clients", options.clients)->capture_default_str()->check(CLI::Range(1, 10000));
  app.add_option("--seconds", options.seconds)->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--rate", options.rate, "Requests a second; 0: as many as possible")->capture_default_str();
  app.add_option("--workers", options.workers, "Registered first")->capture_default_str()->check(CLI::Range(0, 4096));
  app.add_option("--restarts", options.restarts, "Measures how soon so many restarts are seen, and nothing else")
      ->check(CLI::Range(1, 1000));
  CLI11_PARSE(app, argc, argv);
  if (options.restarts > 0) return bootstrap::measure_restarts(options.restarts);
  std::unique_ptr<bootstrap::Server> own;
  if (options.url.empty()) {
    bootstrap::ServerSettings settings;
    settings.port = 0;
    auto server = bootstrap::Server::create(settings);
    if (!server.ok()) return std::fprintf(stderr, "%s\n", server.error().to_string().c_str()), 2;
    own = std::move(*server);
    options.url = "http://127.0.0.1:" + std::to_string(own->port());
  }
  auto url = http::parse_url(options.url);
  if (!url.ok()) return std::fprintf(stderr, "%s\n", url.error().to_string().c_str()), 2;
  asio::io_context loop(1);
  const SystemClock clock;
  http::Deadlines deadlines(loop, clock);
  Load load(loop, deadlines, std::move(*url), options);
  asio::co_spawn(loop, run(load), asio::detached);
  loop.run();
  return report(load);
}
