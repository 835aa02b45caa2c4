#pragma once

#include <boost/asio/io_context.hpp>
#include <memory>
#include <string>

#include "common/metrics.h"
#include "common/random.h"
#include "http/server.h"
#include "sim/openai.h"
#include "sim/options.h"
#include "sim/parcel_transfer.h"

namespace kvferry::sim {

// The HTTP pages of one model server: OpenAI's API, /health and /metrics. Everything happens on the loop but for the
// answers, which the serving thread brings. What it is given outlives it; `transfer` may be null.
class Face {
 public:
  struct Parts {
    boost::asio::io_context& loop;
    http::Deadlines& deadlines;
    const SimOptions& options;
    Serving& serving;
    ParcelTransfer* transfer;
    MetricsRegistry& metrics;
  };
  explicit Face(const Parts& parts);

  // Binds and listens.
  Status listen();
  uint16_t port() const { return server_->port(); }

  // From now on /health says 503 and no new connections are taken; requests go on.
  void drain();
  // Requests that wait for their answers.
  size_t answering() const { return answering_; }
  void close() { server_->close(); }

 private:
  struct Answer;

  boost::asio::awaitable<void> serve(http::Request& request, http::ResponseWriter& writer);
  http::Response page(const http::Request& request);
  boost::asio::awaitable<void> complete(http::Request& request, http::ResponseWriter& writer, bool chat);
  Result<CompletionRequest> read(const http::Request& request, bool chat);
  boost::asio::awaitable<void> answer(const CompletionRequest& request, const ResponseHead& head, Answer& answer,
                                      http::ResponseWriter& writer);
  std::shared_ptr<Answer> submit(const CompletionRequest& request);
  void count(bool chat, const GenerationEnd* end);
  void refresh_gauges();

  const Parts parts_;
  const int64_t created_;
  SystemRandom random_;
  std::unique_ptr<http::Server> server_;
  bool draining_ = false;
  size_t answering_ = 0;
};

}  // namespace kvferry::sim
