#include "http/stream.h"

#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <optional>

namespace kvferry::http {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using namespace std::chrono_literals;

// A stream and the plain socket at its other end.
class StreamTest : public testing::Test {
 protected:
  void SetUp() override {
    tcp::acceptor acceptor(*loop, {asio::ip::make_address("127.0.0.1"), 0});
    peer.emplace(*loop);
    peer->connect(acceptor.local_endpoint());
    stream = std::make_unique<Stream>(acceptor.accept());
  }

  // Reads to the end of the stream, waiting wherever nothing is there.
  asio::awaitable<void> read_all() {
    for (;;) {
      const auto bytes = stream->receive_now();
      if (!bytes.ok()) {
        end = bytes.error().cause;
        co_return;
      }
      received.append(*bytes);
      if (!bytes->empty()) continue;
      ++waits;
      co_await stream->wait_readable();
    }
  }
  void start() { asio::co_spawn(*loop, read_all(), asio::detached); }
  template <class Condition>
  bool until(Condition condition) {
    const auto limit = std::chrono::steady_clock::now() + 30s;
    while (!condition() && std::chrono::steady_clock::now() < limit) {
      loop->restart();
      loop->run_one_for(5ms);
    }
    return condition();
  }
  void send(const std::string& text, int flags = 0) {
    ASSERT_EQ(::send(peer->native_handle(), text.data(), text.size(), flags), static_cast<ssize_t>(text.size()));
  }

  std::unique_ptr<asio::io_context> loop = std::make_unique<asio::io_context>(1);
  std::optional<tcp::socket> peer;
  std::unique_ptr<Stream> stream;
  std::string received, end;
  int waits = 0;
};

TEST_F(StreamTest, SeesWhatCameBeforeItWasThere) {
  send("early");
  start();
  EXPECT_TRUE(until([&] { return received == "early"; }));
}

TEST_F(StreamTest, AnEndThatCameWithTheLastBytesIsSeen) {
  start();
  ASSERT_TRUE(until([&] { return waits == 1; }));
  send("last");
  peer->close();  // before the loop turns: one event for both
  EXPECT_TRUE(until([&] { return !end.empty(); }));
  EXPECT_EQ(received, "last");
  EXPECT_EQ(end, "end of stream");
}

TEST_F(StreamTest, AResetThatCameWithTheLastBytesIsSeen) {
  start();
  ASSERT_TRUE(until([&] { return waits == 1; }));
  send("last");
  peer->set_option(asio::socket_base::linger(true, 0));
  peer->close();
  EXPECT_TRUE(until([&] { return !end.empty(); }));
  EXPECT_NE(end, "end of stream");
}

TEST_F(StreamTest, UrgentBytesDoNotKeepTheLoopBusy) {
  start();
  ASSERT_TRUE(until([&] { return waits == 1; }));
  send("a");
  send("!", MSG_OOB);
  send("b");
  ASSERT_TRUE(until([&] { return received == "ab"; }));
  const int before = waits;
  for (int i = 0; i < 10; ++i) {
    loop->restart();
    loop->run_for(2ms);
  }
  EXPECT_LE(waits, before + 2);
  send("c");
  EXPECT_TRUE(until([&] { return received == "abc"; }));
}

TEST_F(StreamTest, ManyBlocksInOneGoAreAllRead) {
  start();
  ASSERT_TRUE(until([&] { return waits == 1; }));
  const std::string text(5 * kBlockBytes + 7, 'x');
  send(text);
  EXPECT_TRUE(until([&] { return received == text; }));
}

TEST_F(StreamTest, ClosingEndsTheWait) {
  start();
  ASSERT_TRUE(until([&] { return waits == 1; }));
  stream->close();
  EXPECT_TRUE(until([&] { return !end.empty(); }));
  EXPECT_EQ(end, "closed here");
}

TEST_F(StreamTest, AStepLooksWithoutWakingTheCaller) {
  int steps = 0;
  bool woken = false;
  const auto wait = [&]() -> asio::awaitable<void> {
    co_await stream->wait_readable([&] {
      ++steps;
      received.append(*stream->receive_now());
      return received.size() < 3;
    });
    woken = true;
  };
  asio::co_spawn(*loop, wait(), asio::detached);
  for (int i = 1; i <= 3; ++i) {
    EXPECT_FALSE(woken);
    send("x");
    ASSERT_TRUE(until([&] { return steps == i; }));
  }
  EXPECT_TRUE(until([&] { return woken; }));
}

TEST_F(StreamTest, TheLoopsEndFreesWhoWaits) {
  const auto witness = std::make_shared<int>(1);
  const auto wait = [&](std::shared_ptr<int> held) -> asio::awaitable<void> {
    const auto own = std::move(stream);
    co_await own->wait_readable();
    ADD_FAILURE() << "woken " << *held;
  };
  asio::co_spawn(*loop, wait(witness), asio::detached);
  ASSERT_TRUE(until([&] { return stream == nullptr; }));
  EXPECT_EQ(witness.use_count(), 2);
  peer.reset();
  loop.reset();
  EXPECT_EQ(witness.use_count(), 1);
}

}  // namespace
}  // namespace kvferry::http
