#pragma once

#include <boost/asio/awaitable.hpp>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/random.h"
#include "http/server.h"
#include "proxy/access_log.h"
#include "proxy/backends.h"
#include "proxy/config.h"
#include "proxy/health.h"
#include "proxy/legs.h"
#include "proxy/metrics.h"
#include "proxy/pool.h"
#include "proxy/prelude.h"
#include "proxy/release.h"

namespace kvferry::proxy {

// What all requests share; owned by Proxy (proxy/proxy.h).
struct Context {
  boost::asio::io_context& loop;
  const ProxyConfig& config;
  http::Deadlines& deadlines;
  Random& random;
  Scanner& scanner;
  Backends& backends;
  Router& router;
  Pool& pool;
  Health& health;
  Releases& releases;
  Metrics& metrics;
  AccessLog& access_log;
  Logger& log;
};

// One client's request on its way: choose, prefill, hand over, relay. Whatever ends it, nothing stays behind: the
// connection in use is closed and a parcel that nobody fetched is released.
class Exchange {
 public:
  Exchange(Context& context, http::Request& request, http::ResponseWriter& writer, Duration queued);
  ~Exchange();
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  // POST to one of the endpoints that may be split.
  boost::asio::awaitable<void> infer(Endpoint endpoint);
  // Anything else: to a decoder as it is, without kv_transfer_params.
  boost::asio::awaitable<void> pass();

 private:
  enum class Step {
    done,    // the client has its answer, or has left
    next,    // this leg is complete, go on
    failed,  // nothing was sent to the client: another backend may do it
  };
  struct Fault {
    int status = 502;
    std::string message;
  };

  static constexpr int kAttempts = 3;

  // proxy/prefill.cc: prefill, prefiller_..., judge_prefill.
  boost::asio::awaitable<void> split(Endpoint endpoint, const RequestFacts& facts);
  boost::asio::awaitable<Step> attempt(Endpoint endpoint, const RequestFacts& facts);
  boost::asio::awaitable<Step> prefill(Endpoint endpoint, const RequestFacts& facts);
  boost::asio::awaitable<bool> prefiller_comes();
  boost::asio::awaitable<bool> prefiller_restarted();
  boost::asio::awaitable<Step> prefill_on(Endpoint endpoint, const RequestFacts& facts, Choice choice);
  boost::asio::awaitable<Step> judge_prefill(http::ResponseHead head, std::shared_ptr<Backend> backend, int dp_rank);

  // proxy/relay.cc
  boost::asio::awaitable<Step> decode(const Spliced& body, std::string_view leg);
  boost::asio::awaitable<Step> relay(http::ResponseHead head, std::string_view leg);
  boost::asio::awaitable<Status> relay_events(bool succeeded);
  boost::asio::awaitable<void> finish_relay(const http::ResponseHead& head, std::string_view leg, Status end);
  boost::asio::awaitable<void> end_event_stream();
  Result<std::string_view> next_piece(bool dechunk);
  void note_piece(std::string_view piece, bool succeeded);
  Prelude::Heard heard_in(std::string_view piece);
  std::string client_head(const http::ResponseHead& head, bool dechunk);

  // One request to a backend, up to the head of its answer; repeated once if a kept connection turns out to be dead.
  boost::asio::awaitable<Result<http::ResponseHead>> round_trip(std::shared_ptr<Backend> backend,
                                                                const std::string& head, const Spliced& body);
  std::string backend_head(const Backend& backend, size_t body_size, int dp_rank, bool prefill) const;
  void note_failure(Backend& backend, const Error& error, std::string_view leg);
  Fault fault_of(const Error& error) const;
  boost::asio::awaitable<void> answer(int status, std::string message);
  void client_left();
  bool stop() const { return gone_; }
  TimePoint now() const { return context_.deadlines.now(); }
  std::string new_uuid();

  Context& context_;
  http::Request& request_;
  http::ResponseWriter& writer_;
  const TimePoint began_;
  const TimePoint first_byte_due_;
  const Duration queued_;
  std::string request_id_;
  std::string session_;
  std::optional<Endpoint> endpoint_;  // that may be split
  std::optional<Prelude> prelude_;    // until something is heard
  std::shared_ptr<Backend> decoder_;
  std::shared_ptr<Backend> prefiller_;
  const Backend* failed_decoder_ = nullptr;
  const Backend* failed_prefiller_ = nullptr;
  std::unique_ptr<http::ClientConnection> wire_;  // in use with a backend
  HeldParcel parcel_;
  Handover handover_;
  int dp_rank_ = 0;         // of the prefiller
  bool restarted_ = false;  // it became another engine under way; once a request
  Fault fault_;
  bool gone_ = false;
  int status_ = 0;
  std::string_view cause_ = "ok";
  TimePoint prefilled_{};
  Duration prefill_time_{-1};
  Duration first_byte_{-1};
  uint64_t relayed_ = 0;
  std::string payload_;  // of the last piece, for clients of HTTP/1.0 and for prelude_
  char last_byte_ = '\n';
};

}  // namespace kvferry::proxy
