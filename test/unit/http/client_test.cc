#include "http/client.h"

#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <future>
#include <string>
#include <vector>

#include "http/lookup.h"
#include "http/server.h"

namespace kvferry::http {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using namespace std::chrono_literals;

class ManualClock final : public Clock {
 public:
  TimePoint now() const override { return now_; }
  void advance(Duration span) { now_ += span; }

 private:
  TimePoint now_{std::chrono::hours(1)};
};

tcp::endpoint at(const char* address) {
  return {asio::ip::make_address(address), 0};
}

// A server on 127.0.0.1 and a resolver that knows what the test tells it, and never comes back from "stuck".
class ClientTest : public testing::Test {
 protected:
  ClientTest() {
    const auto handler = [](Request&, ResponseWriter& writer) -> asio::awaitable<void> {
      Response response;
      (void)co_await writer.send(std::move(response));
    };
    server = Server::create(*loop, *deadlines, {}, handler).value();
    asio::use_service<Lookups>(*loop).resolve_by(
        [this, never = std::shared_future(end.get_future())](const std::string& host) -> Result<Endpoints> {
          ++asked;
          if (host != "stuck") return known;
          never.wait();
          return Endpoints{};
        });
  }
  ~ClientTest() override {
    drop_loop();
    end.set_value();
  }

  void drop_loop() {
    server.reset();
    deadlines.reset();
    loop.reset();
  }
  // Begins to; what has come of it is added to `outcomes`.
  void connect(const std::string& host, Duration timeout) {
    const auto work = [](ClientTest& test, Url url, Duration limit) -> asio::awaitable<void> {
      auto opened = co_await ClientConnection::connect(*test.loop, *test.deadlines, std::move(url), limit);
      test.outcomes.emplace_back(opened.ok() ? "connected" : to_string(opened.error().code));
    };
    asio::co_spawn(*loop, work(*this, {host, server->port(), "", false}, timeout), asio::detached);
    loop->restart();
    loop->poll();
  }
  template <class Condition>
  bool until(Condition condition) {
    const auto limit = std::chrono::steady_clock::now() + 30s;
    while (!condition() && std::chrono::steady_clock::now() < limit) {
      loop->restart();
      loop->run_one_for(5ms);
    }
    return condition();
  }

  std::promise<void> end;  // of what is stuck
  std::atomic<int> asked = 0;
  Endpoints known{at("127.0.0.1")};
  ManualClock clock;
  std::unique_ptr<asio::io_context> loop = std::make_unique<asio::io_context>(1);
  std::unique_ptr<Deadlines> deadlines = std::make_unique<Deadlines>(*loop, clock);
  std::unique_ptr<Server> server;
  std::vector<std::string> outcomes;
};

TEST_F(ClientTest, ANameThatIsNeverFoundEndsInTime) {
  connect("stuck", 2s);
  ASSERT_TRUE(until([&] { return asked == 1; }));
  clock.advance(3s);
  ASSERT_TRUE(until([&] { return !outcomes.empty(); }));
  EXPECT_EQ(outcomes[0], "deadline_exceeded");
}

TEST_F(ClientTest, ANameThatIsNeverFoundHoldsUpNoOther) {
  connect("stuck", 2s);
  ASSERT_TRUE(until([&] { return asked == 1; }));
  connect("quick", 2s);
  connect("127.0.0.1", 2s);
  ASSERT_TRUE(until([&] { return outcomes.size() == 2; }));
  EXPECT_EQ(outcomes, std::vector<std::string>(2, "connected"));
  EXPECT_EQ(asked, 2) << "an address is not asked for";
}

TEST_F(ClientTest, AllWhoAskForANameShareOneLookup) {
  for (int i = 0; i < 100; ++i) connect("stuck", 2s);
  ASSERT_TRUE(until([&] { return asked > 0; }));
  clock.advance(3s);
  ASSERT_TRUE(until([&] { return outcomes.size() == 100; }));
  connect("stuck", 2s);
  clock.advance(3s);
  ASSERT_TRUE(until([&] { return outcomes.size() == 101; }));
  EXPECT_EQ(asked, 1);
}

// As a proxy asks for those of its backends, all in one turn.
TEST_F(ClientTest, AHundredNamesAtOnceAreAllFound) {
  for (int i = 0; i < 100; ++i) connect("name" + std::to_string(i), 30s);
  ASSERT_TRUE(until([&] { return outcomes.size() == 100; }));
  EXPECT_EQ(outcomes, std::vector<std::string>(100, "connected"));
  EXPECT_EQ(asked, 100);
}

TEST_F(ClientTest, TheLoopsEndDoesNotWaitForALookup) {
  connect("stuck", 2s);
  ASSERT_TRUE(until([&] { return asked == 1; }));
  drop_loop();
  EXPECT_TRUE(outcomes.empty());
}

TEST_F(ClientTest, TheSystemKnowsThisHost) {
  asio::io_context other;
  const auto found = asio::use_service<Lookups>(other).find("localhost").value();
  ASSERT_TRUE(until([&] { return found->answer().ok(); }));
  const Endpoints endpoints = found->answer().value();
  for (const tcp::endpoint& endpoint : endpoints) EXPECT_TRUE(endpoint.address().is_loopback());
}

TEST_F(ClientTest, ANameWithoutAnAddressIsUnavailable) {
  known.clear();
  connect("nowhere", 2s);
  ASSERT_TRUE(until([&] { return !outcomes.empty(); }));
  EXPECT_EQ(outcomes[0], "unavailable");
}

TEST_F(ClientTest, AllAddressesOfANameAreTried) {
  known = {at("127.0.0.2"), at("127.0.0.3"), at("127.0.0.1")};
  connect("far", 2s);
  ASSERT_TRUE(until([&] { return !outcomes.empty(); }));
  EXPECT_EQ(outcomes[0], "connected");
}

// A port of 127.0.0.2 that is asked in vain: its queue is full, so the kernel does not answer.
TEST_F(ClientTest, ASilentAddressTakesItsShareOfTheTime) {
  tcp::acceptor deaf(*loop);
  deaf.open(tcp::v4());
  deaf.bind({asio::ip::make_address("127.0.0.2"), server->port()});
  deaf.listen(0);
  std::vector<tcp::socket> waiting;
  for (int i = 0; i < 4; ++i) {
    waiting.emplace_back(*loop).async_connect(deaf.local_endpoint(), [](const boost::system::error_code&) {});
  }
  known = {at("127.0.0.2"), at("127.0.0.1")};
  const auto found = asio::use_service<Lookups>(*loop).find("far").value();
  ASSERT_TRUE(until([&] { return found->answer().ok(); }));
  connect("far", 2min);
  connect("127.0.0.2", 2min);
  for (int i = 0; i < 10; ++i) loop->run_one_for(5ms);
  EXPECT_TRUE(outcomes.empty());
  clock.advance(61s);
  ASSERT_TRUE(until([&] { return !outcomes.empty(); }));
  EXPECT_EQ(outcomes[0], "connected");
  clock.advance(60s);
  ASSERT_TRUE(until([&] { return outcomes.size() == 2; }));
  EXPECT_EQ(outcomes[1], "deadline_exceeded");
  deaf.close();
  waiting.clear();
}

}  // namespace
}  // namespace kvferry::http
