#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "http/deadlines.h"
#include "http/event.h"
#include "http/server.h"

namespace kvferry::proxy::mock {

// Stand-ins for vLLM servers: real sockets and real HTTP, no model. Used by the system tests and by the bench.

enum class Body { sized, chunked, until_close };

// A delay or pause that ends when the mock is told to wake().
constexpr Duration kUntilWoken = std::chrono::hours(1);

// How a mock answers; may be changed while it runs.
struct Behaviour {
  int status = 200;
  Duration delay{0};         // before the head
  Duration first_delay{0};   // between the head, or what /v1/responses says with it, and the first event
  Duration event_pause{0};   // between two events of a stream
  size_t events = 4;         // of a stream
  size_t event_bytes = 220;  // of one event, its "data: " and empty line included
  Body body = Body::sized;   // of an answer that is not a stream
  std::string content_type = "application/json";
  bool reset_before_head = false;        // close without a word
  bool close_after_answer = false;       // as vLLM does with idle connections, but at once and unannounced
  size_t break_after_events = SIZE_MAX;  // close in mid-stream, between two chunks
  bool break_in_chunk = false;           // ... or within one
  bool half_answer = false;              // a sized answer that stops in the middle
  size_t split_at = 0;                   // send the raw answer in two pieces, the first this long; 0: in one
};

// What a mock was asked.
struct Seen {
  std::string method, target, body;
  http::Headers headers;
};

// A vLLM-like server: prefiller or decoder, told apart only by the bodies that it gets. A prefiller holds a parcel for
// each transfer_id that it finished until a decoder fetches it or somebody releases it.
class MockServer {
 public:
  MockServer(boost::asio::io_context& loop, http::Deadlines& deadlines, uint16_t port = 0,
             std::string host = "127.0.0.1");
  ~MockServer();

  uint16_t port() const { return server_->port(); }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port()); }
  // Closes its port and its connections. A port that was not asked for by number stays its own meanwhile.
  void stop();
  void start();
  // Ends what lasts until then. How many requests that were.
  size_t wake();

  Behaviour behaviour;
  bool record = true;
  bool healthy = true;
  std::function<void(const http::Request&)> on_request, on_client_lost;
  std::vector<Seen> seen;  // inference requests
  size_t requests = 0;
  size_t running = 0;       // requests being answered
  size_t clients_lost = 0;  // requests whose client closed its connection
  size_t events_sent = 0;
  std::vector<std::string> pinged;  // transfer ids of release pings
  bool shows_metrics = true;
  bool moves_kv = true;  // what its /metrics says of requests with a remote prefill

 private:
  boost::asio::awaitable<void> serve(http::Request& request, http::ResponseWriter& writer);
  boost::asio::awaitable<void> answer(const http::Request& request, http::ResponseWriter& writer);
  boost::asio::awaitable<void> stream(const http::Request& request, http::ResponseWriter& writer);
  boost::asio::awaitable<void> raw_answer(http::ResponseWriter& writer, std::string text);
  boost::asio::awaitable<void> sleep(Duration span, http::ResponseWriter& writer);

  boost::asio::io_context& loop_;
  http::Deadlines& deadlines_;
  uint16_t port_;
  const std::string host_;
  std::string metrics_page() const;
  void reserve();

  size_t prompts_ = 0;  // computed here
  size_t hits_ = 0;     // prompts fetched from elsewhere
  std::vector<std::weak_ptr<boost::asio::steady_timer>> asleep_;
  boost::asio::ip::tcp::acceptor reserved_;  // bound, and never listening
  std::unique_ptr<http::Server> server_;
};

// A bootstrap server: vLLM's (query only) or, with `parcels`, kvferry's.
class MockBootstrap {
 public:
  MockBootstrap(boost::asio::io_context& loop, http::Deadlines& deadlines, uint16_t port = 0,
                std::string host = "127.0.0.1");

  uint16_t port() const { return server_->port(); }

  std::string engine_id = "engine-1";
  std::vector<std::string> more_engines;  // of the dp ranks from 1 on
  bool parcels = true;
  int pending_answers = 0;  // how many 202 come before the 200
  bool down = false;        // answers 500
  size_t queries = 0;
  http::Event* late = nullptr;  // answers to queries wait for it, and are what they were before it
  std::function<void(const std::string&)> on_release;
  std::vector<std::string> released;  // transfer ids, acknowledged
  std::vector<std::string> asked;     // every DELETE's target

 private:
  boost::asio::awaitable<void> serve(http::Request& request, http::ResponseWriter& writer);
  std::string workers() const;
  std::unique_ptr<http::Server> server_;
};

// The string value of a member anywhere in `json`; empty if it is not there. For tests and mocks, not a parser.
std::string member_text(const std::string& json, const std::string& name);

}  // namespace kvferry::proxy::mock
