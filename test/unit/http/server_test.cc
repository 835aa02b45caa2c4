#include "http/server.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <vector>

#include "http/event.h"

namespace kvferry::http {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using namespace std::chrono_literals;

// A server whose handler waits until it is woken or its client has gone, before its answer or, at /late, behind it.
class ServerTest : public testing::Test {
 protected:
  ServerTest() {
    const auto handler = [this](Request& request, ResponseWriter& writer) -> asio::awaitable<void> {
      ++running;
      writer.on_gone([this] {
        ++gone;
        woken.set();
      });
      const bool late = request.path() == "/late";
      Response response;
      if (late) (void)co_await writer.send(std::move(response));
      co_await woken.wait();
      writer.on_gone(nullptr);
      --running;
      if (!late && !writer.gone()) (void)co_await writer.send(std::move(response));
    };
    server = Server::create(loop, deadlines, {}, handler).value();
  }

  tcp::socket client() {
    tcp::socket socket(loop);
    socket.connect({asio::ip::make_address("127.0.0.1"), server->port()});
    return socket;
  }
  template <class Condition>
  bool until(Condition condition) {
    const auto limit = std::chrono::steady_clock::now() + 30s;
    while (!condition() && std::chrono::steady_clock::now() < limit) {
      loop.restart();
      loop.run_one_for(5ms);
    }
    return condition();
  }

  const std::string kGet = "GET / HTTP/1.1\r\nHost: t\r\n\r\n";
  asio::io_context loop{1};
  SystemClock clock;
  Deadlines deadlines{loop, clock};
  Event woken;
  int running = 0, gone = 0;
  std::unique_ptr<Server> server;
};

// Where malloc is a sanitizer's, nothing is seen here.
TEST_F(ServerTest, AnnouncedBodiesTakeLittleMemory) {
  constexpr size_t kClients = 64;
  std::vector<tcp::socket> clients;
  for (size_t i = 0; i < kClients; ++i) clients.push_back(client());
  ASSERT_TRUE(until([&] { return server->counts().open == kClients; }));
  const size_t before = ::mallinfo2().uordblks + ::mallinfo2().hblkhd;
  for (auto& socket : clients) {
    asio::write(socket, asio::buffer(std::string("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 100000000\r\n\r\na")));
  }
  ASSERT_TRUE(until([&] { return server->counts().body_bytes == kClients; }));
  const size_t after = ::mallinfo2().uordblks + ::mallinfo2().hblkhd;
  EXPECT_LT(after, before + kClients * (64 << 10));
}

TEST_F(ServerTest, WhoSendsMuchBeforeTheAnswerIsGone) {
  auto socket = client();
  const std::string text = kGet + std::string(200 << 10, 'a');
  asio::async_write(socket, asio::buffer(text), [](const boost::system::error_code&, size_t) {});
  EXPECT_TRUE(until([&] { return gone == 1 && running == 0; }));
  EXPECT_TRUE(until([&] { return server->counts().open == 0; }));
}

TEST_F(ServerTest, WhoSendsMuchBehindTheAnswerIsNotGone) {
  auto socket = client();
  const std::string text =
      "GET /late HTTP/1.1\r\nHost: t\r\n\r\nPOST / HTTP/1.1\r\nHost: t\r\nContent-Length: 204800\r\n\r\n" +
      std::string(200 << 10, 'a');
  bool sent = false;
  asio::async_write(socket, asio::buffer(text), [&](const boost::system::error_code&, size_t) { sent = true; });
  ASSERT_TRUE(until([&] { return running == 1; }));
  for (int i = 0; i < 20; ++i) loop.run_one_for(5ms);
  woken.set();
  ASSERT_TRUE(until([&] { return sent && running == 1 && server->counts().body_bytes == 200 << 10; }));
  woken.set();
  EXPECT_TRUE(until([&] { return running == 0; }));
  EXPECT_EQ(gone, 0);
}

TEST_F(ServerTest, ClosingTellsAllWhoWait) {
  auto socket = client();
  asio::write(socket, asio::buffer(kGet));
  ASSERT_TRUE(until([&] { return running == 1; }));
  server->close();
  EXPECT_EQ(gone, 1);
  EXPECT_EQ(running, 0);
}

}  // namespace
}  // namespace kvferry::http
