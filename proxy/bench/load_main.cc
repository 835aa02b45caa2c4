// kvferry-proxy-load: clients that ask again and again; prints one JSON line with latencies and, for --pid, the CPU
// time that the program under test has used meanwhile.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "common/random.h"
#include "http/client.h"

namespace kvferry {
namespace {

namespace asio = boost::asio;

struct Options {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;
  size_t clients = 64, requests = 10000, prompt_bytes = 2048;
  bool stream = false, fresh = false, leave = false;
  int pid = 0, stall_ms = 0, seconds = 0;
};

struct Tally {
  std::vector<double> first_us, total_us;
  size_t started = 0, failed = 0, pieces = 0, open = 0, left = 0;
  std::string first_failure;
};

// Nanoseconds that all threads of a process have run.
double cpu_ns(int pid) {
  double sum = 0;
  std::error_code ignored;
  for (const auto& task : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task", ignored)) {
    double ran = 0;
    std::ifstream(task.path() / "schedstat") >> ran;
    sum += ran;
  }
  return sum;
}

long rss_kib(int pid) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  std::string word;
  long value = 0;
  while (status >> word) {
    if (word == "VmRSS:" && status >> value) break;
  }
  return value;
}

class Load {
 public:
  explicit Load(Options options) : options_(std::move(options)) {
    const std::string prompt(options_.prompt_bytes, 'p');
    body_ = R"({"model":"m","max_tokens":16,"prompt":")" + prompt + "\"";
    body_ += options_.stream ? ",\"stream\":true}" : "}";
    head_ = "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: " +
            std::to_string(body_.size()) + "\r\n\r\n";
    url_.host = options_.host;
    url_.port = options_.port;
  }

  void run() {
    const double cpu = options_.pid ? cpu_ns(options_.pid) : 0;
    const TimePoint start = clock_.now();
    if (options_.seconds > 0) end_ = after(start, std::chrono::seconds(options_.seconds));
    for (size_t i = 0; i < options_.clients; ++i) asio::co_spawn(loop_, client(), asio::detached);
    long rss = 0;
    while (loop_.run_one() > 0) {
      if (!options_.pid || tally_.open < options_.clients) continue;
      // Stalled clients let memory grow after the last one has come.
      rss = rss == 0 ? rss_kib(options_.pid) : rss;
      if (options_.stall_ms > 0 && tally_.total_us.empty()) rss = std::max(rss, rss_kib(options_.pid));
    }
    report(seconds(clock_.now() - start), options_.pid ? (cpu_ns(options_.pid) - cpu) / 1e3 : 0, rss);
  }

 private:
  asio::awaitable<void> client() {
    std::unique_ptr<http::ClientConnection> wire;
    while (tally_.started < options_.requests && clock_.now() < end_) {
      ++tally_.started;
      const TimePoint start = clock_.now();
      const Status good = co_await one(wire, start);
      if (!good.ok()) {
        ++tally_.failed;
        if (tally_.first_failure.empty()) tally_.first_failure = good.error().to_string();
        wire.reset();
      } else if (options_.fresh || !wire || !wire->reusable()) {
        wire.reset();
      }
    }
  }

  asio::awaitable<Status> one(std::unique_ptr<http::ClientConnection>& wire, TimePoint start) {
    if (!wire) {
      auto opened = co_await http::ClientConnection::connect(loop_, deadlines_, url_, std::chrono::seconds(30));
      if (!opened.ok()) co_return opened.error();
      wire = std::move(*opened);
    }
    const std::array<std::string_view, 2> pieces{head_, body_};
    const Status sent = co_await wire->send(pieces);
    if (!sent.ok()) co_return sent;
    if (options_.leave && random_.below(2) == 0) {
      // Leaves at some moment within the next milliseconds.
      asio::steady_timer timer(loop_);
      timer.expires_after(std::chrono::microseconds(random_.below(5000)));
      co_await timer.async_wait(asio::use_awaitable);
      ++tally_.left;
      wire.reset();
      co_return Status();
    }
    const auto head = co_await wire->read_head();
    if (!head.ok()) co_return head.error();
    if (head->status != 200) co_return Error{ErrorCode::unavailable, "status " + std::to_string(head->status)};
    bool first = true;
    while (!wire->body_done()) {
      const auto bytes = wire->body_now();
      if (!bytes.ok()) co_return bytes.error();
      if (bytes->empty()) {
        if (!wire->body_done()) co_await wire->wait();
        continue;
      }
      ++tally_.pieces;
      if (std::exchange(first, false)) {
        tally_.first_us.push_back(seconds(clock_.now() - start) * 1e6);
        ++tally_.open;
        if (options_.stall_ms > 0) {
          asio::steady_timer timer(loop_);
          timer.expires_after(std::chrono::milliseconds(options_.stall_ms));
          co_await timer.async_wait(asio::use_awaitable);
        }
      }
    }
    tally_.total_us.push_back(seconds(clock_.now() - start) * 1e6);
    co_return Status();
  }

  static double quantile(std::vector<double>& values, double share) {
    if (values.empty()) return 0;
    const auto index = static_cast<size_t>(share * static_cast<double>(values.size() - 1));
    std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(index), values.end());
    return values[index];
  }

  void report(double wall_s, double cpu_us, long rss) {
    const auto requests = static_cast<double>(std::max<size_t>(tally_.started, 1));
    const auto pieces = static_cast<double>(std::max<size_t>(tally_.pieces, 1));
    std::printf("{\"requests\":%zu,\"failed\":%zu,\"left\":%zu,\"pieces\":%zu,\"wall_s\":%.3f,\"per_s\":%.0f,",
                tally_.started, tally_.failed, tally_.left, tally_.pieces, wall_s, requests / wall_s);
    std::printf("\"cpu_us_request\":%.2f,\"cpu_us_piece\":%.2f,\"rss_kib\":%ld,", cpu_us / requests, cpu_us / pieces,
                rss);
    std::printf("\"first_p50_us\":%.0f,\"first_p99_us\":%.0f,", quantile(tally_.first_us, 0.5),
                quantile(tally_.first_us, 0.99));
    std::printf("\"total_p50_us\":%.0f,\"total_p99_us\":%.0f,", quantile(tally_.total_us, 0.5),
                quantile(tally_.total_us, 0.99));
    std::printf("\"first_failure\":\"%s\"}\n", tally_.first_failure.c_str());
  }

  const Options options_;
  asio::io_context loop_{1};
  SystemClock clock_;
  SeededRandom random_{1};
  http::Deadlines deadlines_{loop_, clock_};
  http::Url url_;
  std::string head_, body_;
  TimePoint end_ = TimePoint::max();
  Tally tally_;
};

int run(int argc, char** argv) {
  Options options;
  CLI::App app{"Load for proxies"};
  app.add_option("--host", options.host);
  app.add_option("--port", options.port);
  app.add_option("--clients", options.clients);
  app.add_option("--requests", options.requests, "In all, at most");
  app.add_option("--seconds", options.seconds, "No request starts after so long; 0: no limit");
  app.add_option("--prompt-bytes", options.prompt_bytes);
  app.add_flag("--stream", options.stream);
  app.add_flag("--fresh", options.fresh, "A new connection for each request");
  app.add_flag("--leave", options.leave, "Every other request is left at a random moment");
  app.add_option("--stall-ms", options.stall_ms, "Reads nothing for so long after the first piece");
  app.add_option("--pid", options.pid, "Process whose CPU time is measured");
  CLI11_PARSE(app, argc, argv);
  Load(options).run();
  return 0;
}

}  // namespace
}  // namespace kvferry

int main(int argc, char** argv) {
  return kvferry::run(argc, argv);
}
