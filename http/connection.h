#pragma once

#include <boost/asio/ssl/context.hpp>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "http/body_budget.h"
#include "http/event.h"
#include "http/parser.h"
#include "http/server.h"
#include "http/stream.h"

namespace kvferry::http {

class Connection;

// What a server's connections share. Internal to http/.
struct ServerShared {
  ServerShared(Deadlines& deadlines_in, ServerConfig config_in, Handler handler_in, HeadHandler at_head_in)
      : deadlines(deadlines_in),
        config(std::move(config_in)),
        handler(std::move(handler_in)),
        at_head(std::move(at_head_in)),
        bodies{config.max_bodies_bytes} {}

  Deadlines& deadlines;
  const ServerConfig config;
  const Handler handler;
  const HeadHandler at_head;  // may be empty
  BodyBudget bodies;
  std::unordered_set<Connection*> open;
  std::unordered_map<std::string, size_t> per_address;
  bool draining = false;
};

// One client's connection: reads requests one after the other, runs the handler, and watches the socket meanwhile, so
// that a client that leaves is noticed at once.
class Connection final : public std::enable_shared_from_this<Connection>, public ResponseWriter {
 public:
  Connection(std::shared_ptr<ServerShared> shared, std::unique_ptr<Stream> stream, std::string remote);
  ~Connection() override;

  boost::asio::awaitable<void> run();
  // Ends it wherever it is.
  void close();
  // Ends it if it waits for a request.
  void close_if_idle();
  // Destroys the coroutine that waits for input, for a server that is destroyed with connections left.
  void abandon() { input_.drop(); }

  boost::asio::awaitable<Status> send(Response response) override;
  boost::asio::awaitable<Status> start(int status, const Headers& headers) override;
  boost::asio::awaitable<Status> write(std::string_view bytes) override;
  boost::asio::awaitable<Status> finish() override;
  boost::asio::awaitable<Status> raw(std::string_view bytes) override;
  void raw_end(bool reusable) override;
  Result<bool> raw_now(std::string_view bytes) override;
  bool started() const override { return started_; }
  bool keep_alive() const override { return keep_alive_ && !shared_->draining; }
  bool gone() const override { return gone_; }
  void on_gone(std::function<void()> notice) override;

 private:
  enum class Phase { idle, head, body, handler };

  boost::asio::awaitable<bool> read_request(Request& request);
  boost::asio::awaitable<bool> read_head(Request& request);
  boost::asio::awaitable<bool> read_body(Request& request);
  boost::asio::awaitable<bool> read_sized_body(Request& request);
  boost::asio::awaitable<bool> read_chunked_body(Request& request);
  // Waits until the socket is readable.
  boost::asio::awaitable<void> readable();
  // Appends what comes next to in_; false at the end of the stream.
  boost::asio::awaitable<bool> fill();
  // Answers and drops the connection, letting the client read the answer while it still sends. Always false.
  boost::asio::awaitable<bool> refuse(int status, std::string message);
  boost::asio::awaitable<bool> refuse(Response answer);
  boost::asio::awaitable<bool> refuse_for_want_of_room();
  boost::asio::awaitable<void> linger();

  void watch();
  void watched();
  void notice_gone();
  void expired();
  void extend_body_deadline(uint64_t received);
  boost::asio::awaitable<Status> push(std::string_view first, std::string_view second);

  const std::shared_ptr<ServerShared> shared_;
  const std::unique_ptr<Stream> stream_;
  const std::string remote_;
  Deadline deadline_;
  Event input_;
  BodyShare share_;
  std::string in_;   // received, not yet part of a request
  std::string out_;  // of a raw answer, not yet taken by the kernel; at most one block
  std::function<void()> gone_notice_;
  std::unique_ptr<Response> from_head_;  // of a request that needs no handler, until it is sent
  Phase phase_ = Phase::idle;
  TimePoint body_began_{};
  int minor_version_ = 1;
  bool head_only_ = false;
  bool watching_ = false;
  bool started_ = false;
  bool ended_ = false;  // the answer is complete
  bool keep_alive_ = true;
  bool chunked_ = false;
  bool gone_ = false;
  bool timed_out_ = false;
};

}  // namespace kvferry::http
