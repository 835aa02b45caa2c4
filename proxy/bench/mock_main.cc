// kvferry-proxy-mock: a prefiller, its bootstrap server and a decoder on three ports, for the bench.

#include <CLI/CLI.hpp>
#include <cstdio>

#include "proxy/bench/mock.h"

namespace kvferry {
namespace {

int run(int argc, char** argv) {
  uint16_t prefill_port = 8100, decode_port = 8200, bootstrap_port = 8998;
  size_t events = 100, event_bytes = 220;
  double pause_ms = 0, first_ms = 0;
  std::string host = "127.0.0.1";
  CLI::App app{"Mock backends"};
  app.add_option("--host", host);
  app.add_option("--prefill-port", prefill_port);
  app.add_option("--decode-port", decode_port);
  app.add_option("--bootstrap-port", bootstrap_port);
  app.add_option("--events", events);
  app.add_option("--event-bytes", event_bytes);
  app.add_option("--pause-ms", pause_ms, "Between two events");
  app.add_option("--first-ms", first_ms, "Between head and first event");
  bool closes = false;
  app.add_flag("--close", closes, "Close each connection after its answer, unannounced");
  CLI11_PARSE(app, argc, argv);

  boost::asio::io_context loop(1);
  const SystemClock clock;
  http::Deadlines deadlines(loop, clock);
  proxy::mock::MockServer prefiller(loop, deadlines, prefill_port, host);
  proxy::mock::MockServer decoder(loop, deadlines, decode_port, host);
  proxy::mock::MockBootstrap bootstrap(loop, deadlines, bootstrap_port, host);
  prefiller.record = decoder.record = false;
  prefiller.behaviour.close_after_answer = decoder.behaviour.close_after_answer = closes;
  decoder.behaviour.events = events;
  decoder.behaviour.event_bytes = event_bytes;
  decoder.behaviour.event_pause = std::chrono::microseconds(static_cast<int64_t>(pause_ms * 1e3));
  decoder.behaviour.first_delay = std::chrono::microseconds(static_cast<int64_t>(first_ms * 1e3));
  std::puts("ready");
  std::fflush(stdout);
  loop.run();
  return 0;
}

}  // namespace
}  // namespace kvferry

int main(int argc, char** argv) {
  return kvferry::run(argc, argv);
}
