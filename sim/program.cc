#include "sim/program.h"

#include <fmt/format.h>

#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <csignal>
#include <thread>

#include "common/log.h"
#include "sim/face.h"

namespace kvferry::sim {
namespace {

namespace asio = boost::asio;

constexpr Duration kPoll = std::chrono::milliseconds(10);
constexpr Duration kQuietLimit = std::chrono::seconds(3);

HandoverConfig handover_config(const SimOptions& options, std::shared_ptr<Logger> log) {
  SystemRandom random;
  HandoverConfig config;
  config.gives = options.role != ServerRole::decode;
  config.takes = options.role != ServerRole::prefill;
  config.instance_id = fmt::format("{}-{:016x}", options.model_name, random.next());
  config.model_fingerprint = options.model.fingerprint();
  config.block_size = options.model.block_size;
  config.host = options.host;
  config.bootstrap_port = options.bootstrap_port;
  config.bootstrap_url = options.bootstrap_url;
  config.lease = options.lease;
  config.engine = options.engine;
  config.engine.logger = std::move(log);
  return config;
}

// A server and its threads, in the order in which they depend on each other.
class Program {
 public:
  Program(const SimOptions& options, std::shared_ptr<Logger> log)
      : options_(options), log_(std::move(log)), deadlines_(loop_, clock_) {}
  ~Program() {
    stopping_ = true;
    if (!serving_) return;
    serving_->abort_all();  // wakes the thread
    if (thread_.joinable()) thread_.join();
  }

  Status start();
  void run() { loop_.run(); }

 private:
  asio::awaitable<void> end();
  template <class Busy>
  asio::awaitable<void> wait_while(Busy busy, Duration limit);

  const SimOptions& options_;
  const std::shared_ptr<Logger> log_;
  const SystemClock clock_;
  MetricsRegistry metrics_;
  asio::io_context loop_{1};
  http::Deadlines deadlines_;
  asio::signal_set signals_{loop_, SIGTERM, SIGINT};
  std::unique_ptr<Model> model_;
  std::unique_ptr<ParcelTransfer> transfer_;
  std::unique_ptr<Serving> serving_;
  std::unique_ptr<Face> face_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

Status Program::start() {
  KVF_ASSIGN_OR_RETURN(model_, Model::create(options_.model, options_.tp, options_.serving.scheduler.blocks));
  if (options_.hands_over) {
    KVF_ASSIGN_OR_RETURN(transfer_,
                         ParcelTransfer::create(handover_config(options_, log_), *model_, clock_, metrics_, log_));
  }
  KVF_ASSIGN_OR_RETURN(serving_, Serving::create(options_.serving, *model_, clock_, transfer_.get()));
  face_ = std::make_unique<Face>(Face::Parts{loop_, deadlines_, options_, *serving_, transfer_.get(), metrics_});
  KVF_RETURN_IF_ERROR(face_->listen());
  thread_ = std::thread([this] {
    while (!stopping_) {
      if (!serving_->step_on_loop()) serving_->wait_on_loop(kNever);
    }
  });
  log_->info("listening on {}:{}, tp {}, {} blocks, instance {}", options_.host, face_->port(), options_.tp,
             model_->blocks(), transfer_ ? transfer_->instance_id() : "none");
  signals_.async_wait([this](const boost::system::error_code& error, int) {
    if (!error) asio::co_spawn(loop_, end(), asio::detached);
  });
  return {};
}

template <class Busy>
asio::awaitable<void> Program::wait_while(Busy busy, Duration limit) {
  const TimePoint until = after(clock_.now(), limit);
  asio::steady_timer timer(loop_);
  while (busy() && clock_.now() < until) {
    timer.expires_after(kPoll);
    co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
  }
}

// Requests may finish, and readers take what was computed for them; then everything ends by itself.
asio::awaitable<void> Program::end() {
  log_->info("draining");
  signals_.async_wait([this](const boost::system::error_code& error, int) {
    if (!error) loop_.stop();
  });
  face_->drain();
  const auto busy = [this] { return face_->answering() > 0 || serving_->stats().held > 0; };
  co_await wait_while(busy, options_.drain_limit);
  serving_->abort_all();
  const auto loud = [this] { return face_->answering() > 0 || serving_->stats().draining > 0; };
  co_await wait_while(loud, kQuietLimit);
  face_->close();
  log_->info("ended, {} parcels still held", serving_->stats().held);
  loop_.stop();
}

}  // namespace

Status serve(const SimOptions& options) {
  const auto log = make_stderr_logger(options.log_level, "sim");
  Program program(options, log);
  KVF_RETURN_IF_ERROR(program.start());
  program.run();
  return {};
}

}  // namespace kvferry::sim
