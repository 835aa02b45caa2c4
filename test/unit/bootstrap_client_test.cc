#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <deque>
#include <optional>

#include "bootstrap/backoff.h"
#include "bootstrap/client.h"
#include "http/json.h"
#include "http/server.h"

namespace kvferry::bootstrap {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;
using std::chrono::seconds;

http::Response ok(std::string body, const char* ttl = nullptr) {
  http::Response response;
  response.body = std::move(body);
  if (ttl != nullptr) response.headers.add("Kvferry-Ttl-Ms", ttl);
  return response;
}

http::Response status(int code) {
  return http::error_response(code, "as told");
}

const char* const kQuery = R"({"0":{"engine_id":"e1","worker_addr":{"0":{"0":"tcp://10.0.0.2:41234"}}}})";

std::string workers_json(const std::string& engine, const std::string& incarnation) {
  return R"({"workers":[{"engine_id":")" + engine +
         R"(","dp_rank":0,"tp_rank":0,"pp_rank":0,"addr":"tcp://127.0.0.1:7","incarnation":")" + incarnation + "\"}]}";
}

// Stands still, however slow the machine is, or goes on by a step each time that it is asked: then what reads it more
// often has more time, and nothing else.
class SteppedClock final : public Clock {
 public:
  TimePoint now() const override { return now_ += step; }
  Duration step{0};

 private:
  mutable TimePoint now_{std::chrono::hours(1)};
};

// A server that answers as scripted and a client, on one loop.
class BootstrapClientTest : public testing::Test {
 protected:
  BootstrapClientTest() : deadlines_(loop_, clock_) {
    http::ServerConfig config;
    server_ =
        http::Server::create(loop_, deadlines_, config, [this](http::Request& request, http::ResponseWriter& out) {
          return answer(request, out);
        }).value();
    base_.host = "127.0.0.1";
    base_.port = server_->port();
  }

  asio::awaitable<void> answer(http::Request& request, http::ResponseWriter& out) {
    seen_.push_back(request.method + " " + request.target);
    http::Response response = status(404);
    if (!script_.empty()) {
      response = std::move(script_.front());
      script_.pop_front();
    }
    const Status sent = co_await out.send(std::move(response));
    static_cast<void>(sent.ok());
  }

  Client client(Client::Config config = {}) { return {loop_, deadlines_, random_, std::move(config)}; }

  template <class Value>
  Value run(asio::awaitable<Value> call) {
    std::optional<Value> outcome;
    asio::co_spawn(loop_, keep(std::move(call), outcome), asio::detached);
    loop_.restart();
    const SystemClock clock;
    const TimePoint limit = clock.now() + seconds(60);
    while (!outcome && clock.now() < limit) loop_.run_one_for(seconds(1));
    return std::move(outcome).value();
  }
  template <class Value>
  static asio::awaitable<void> keep(asio::awaitable<Value> call, std::optional<Value>& outcome) {
    auto value = co_await std::move(call);
    outcome.emplace(std::move(value));
  }

  asio::io_context loop_{1};
  SteppedClock clock_;
  http::Deadlines deadlines_;
  SeededRandom random_{1};
  std::deque<http::Response> script_;
  std::vector<std::string> seen_;
  std::unique_ptr<http::Server> server_;
  http::Url base_;
};

TEST_F(BootstrapClientTest, FallsBackToVllmsQuery) {
  Client asking = client();
  script_ = {status(404), ok(kQuery)};
  const auto workers = run(asking.workers(base_));
  ASSERT_TRUE(workers.ok()) << workers.error().to_string();
  ASSERT_EQ((*workers)->size(), 1U);
  EXPECT_EQ((*workers)->front().addr, "tcp://10.0.0.2:41234");
  EXPECT_EQ(seen_, (std::vector<std::string>{"GET /v1/workers", "GET /query"}));
}

TEST_F(BootstrapClientTest, KeepsAnswersAsLongAsTheServerSays) {
  Client asking = client();
  script_ = {ok(workers_json("e", "1"), "60000"), ok(workers_json("f", "2"), "0"), ok(workers_json("g", "3"), "0")};
  EXPECT_TRUE(run(asking.workers(base_)).ok());
  EXPECT_EQ(run(asking.workers(base_)).value()->front().engine_id, "e");
  EXPECT_EQ(asking.requests(), 1U);
  asking.forget(base_);
  EXPECT_EQ(run(asking.workers(base_)).value()->front().engine_id, "f");
  EXPECT_EQ(run(asking.workers(base_)).value()->front().engine_id, "g");
}

TEST_F(BootstrapClientTest, AsksAgainWhenASessionShowsAnotherIncarnation) {
  Client asking = client();
  WorkerInfo info;
  info.engine_id = "e/0.0.0";
  info.address = "127.0.0.1:7";
  info.incarnation = 1;
  script_ = {ok(workers_json("e", "1"), "60000"), ok(to_protobuf(info), "60000")};
  EXPECT_TRUE(run(asking.workers(base_)).ok());
  EXPECT_EQ(run(asking.worker(base_)).value()->incarnation, 1U);
  asking.saw("e/0.0.0", "127.0.0.1:7", 1);
  EXPECT_TRUE(run(asking.workers(base_)).ok());
  EXPECT_TRUE(run(asking.worker(base_)).ok());
  EXPECT_EQ(asking.requests(), 2U);
  asking.saw("e/0.0.0", "127.0.0.1:7", 2);
  info.incarnation = 2;
  script_ = {ok(workers_json("e", "2"), "60000"), ok(to_protobuf(info), "60000")};
  EXPECT_EQ(run(asking.workers(base_)).value()->front().incarnation, 2U);
  EXPECT_EQ(run(asking.worker(base_)).value()->incarnation, 2U);
}

TEST_F(BootstrapClientTest, TriesAgainWhatMayPassAndNothingElse) {
  Client asking = client();
  script_ = {status(503), status(500), ok(workers_json("e", "1"))};
  EXPECT_TRUE(run(asking.workers(base_)).ok());
  EXPECT_EQ(seen_.size(), 3U);
  script_ = {status(400)};
  asking.forget(base_);
  EXPECT_EQ(run(asking.workers(base_)).error().code, ErrorCode::protocol);
  EXPECT_EQ(seen_.size(), 4U);
  script_ = {ok("nonsense")};
  EXPECT_EQ(run(asking.workers(base_)).error().code, ErrorCode::protocol);
}

TEST_F(BootstrapClientTest, GivesUpByItsTimeout) {
  Client::Config config;
  config.timeout = milliseconds(300);
  Client asking = client(config);
  http::Url nobody = base_;
  nobody.port = 9;
  clock_.step = milliseconds(5);
  const TimePoint began = clock_.now();
  EXPECT_EQ(run(asking.workers(nobody)).error().code, ErrorCode::unavailable);
  EXPECT_LT(clock_.now() - began, milliseconds(400));
  EXPECT_GT(asking.requests(), 2U);
}

TEST_F(BootstrapClientTest, ReleasesAndTellsWhatTheServerSaid) {
  Client asking = client();
  script_ = {status(200), status(202), status(404), status(401)};
  EXPECT_EQ(run(asking.release(base_, "a/b", true)).value(), ReleaseState::acknowledged);
  EXPECT_EQ(run(asking.release(base_, "c", false)).value(), ReleaseState::pending);
  EXPECT_EQ(run(asking.release(base_, "c", false)).error().code, ErrorCode::not_found);
  EXPECT_EQ(run(asking.release(base_, "c", false)).error().code, ErrorCode::permission_denied);
  EXPECT_EQ(seen_[0], "DELETE /v1/parcels/a%2Fb?force=1");
  EXPECT_EQ(seen_[1], "DELETE /v1/parcels/c");
}

TEST(BootstrapCache, IsBounded) {
  TimedCache<int> cache(2);
  const TimePoint now{seconds(1)};
  cache.put("a", std::make_shared<const int>(1), now + seconds(1));
  cache.put("b", std::make_shared<const int>(2), now + seconds(3));
  cache.put("c", std::make_shared<const int>(3), now + seconds(2));
  EXPECT_EQ(cache.get("a", now), nullptr);
  EXPECT_EQ(*cache.get("b", now), 2);
  EXPECT_EQ(*cache.get("c", now), 3);
  EXPECT_EQ(cache.get("c", now + seconds(2)), nullptr);
}

TEST(BootstrapBackoff, DoublesWithJitterUpToItsLimit) {
  SeededRandom random(3);
  Backoff backoff(milliseconds(100), milliseconds(400), random);
  for (const int longest : {100, 200, 400, 400}) {
    const Duration pause = backoff.next();
    EXPECT_LE(pause, milliseconds(longest));
    EXPECT_GE(pause, milliseconds(longest / 2));
  }
  backoff.reset();
  EXPECT_LE(backoff.next(), milliseconds(100));
}

}  // namespace
}  // namespace kvferry::bootstrap
