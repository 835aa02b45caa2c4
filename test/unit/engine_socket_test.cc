#include <gtest/gtest.h>

#include <atomic>
#include <string>

#include "engine/io/socket_network.h"

// Real sockets on the production loop.

namespace kvferry {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class Counter final : public StreamHandler {
 public:
  explicit Counter(Stream& stream) : stream_(stream) {
    stream.set_handler(this);
    stream.want(true, false);
  }
  ~Counter() override { stream_.set_handler(nullptr); }
  void on_stream_ready(bool readable, bool) override { wakes += readable; }

  int wakes = 0;

 private:
  Stream& stream_;
};

class SocketStreamTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto listener = network_.listen(Address{"127.0.0.1", 0}, [this](auto stream) { here_ = std::move(stream); });
    ASSERT_TRUE(listener.ok());
    listener_ = std::move(*listener);
    there_ = std::move(network_.dial(listener_->address())).value();
    ASSERT_TRUE(turn_until([&] { return here_ != nullptr; }));
  }
  template <class Condition>
  bool turn_until(const Condition& condition) {
    const TimePoint end = loop_->now() + seconds(60);
    while (!condition() && loop_->now() < end) loop_->run_once(loop_->now() + milliseconds(10), nothing_pending_);
    return condition();
  }
  void send(size_t count) {
    std::string bytes(count, 'x');
    ASSERT_TRUE(turn_until([&] {
      const iovec all{bytes.data(), bytes.size()};
      const auto sent = there_->write(std::span(&all, 1));
      bytes.erase(0, sent.ok() ? *sent : 0);
      return bytes.empty();
    }));
  }
  // False proves nothing on a machine that is slow enough; true does.
  bool woken_soon(const Counter& counter) {
    const TimePoint end = loop_->now() + milliseconds(50);
    while (counter.wakes == 0 && loop_->now() < end) loop_->run_once(end, nothing_pending_);
    return counter.wakes > 0;
  }

  std::atomic<size_t> nothing_pending_{0};
  std::unique_ptr<EpollLoop> loop_ = std::move(EpollLoop::create(std::make_shared<SystemClock>())).value();
  SocketNetwork network_{*loop_, SocketOptions{}};
  std::unique_ptr<Listener> listener_;
  std::unique_ptr<Stream> here_;
  std::unique_ptr<Stream> there_;
};

TEST_F(SocketStreamTest, WakesForAsManyBytesAsAreAskedFor) {
  here_->wake_at(3000);
  const Counter counter(*here_);
  send(2999);
  EXPECT_FALSE(woken_soon(counter));
  EXPECT_FALSE(here_->has_input());
  send(1);
  EXPECT_TRUE(turn_until([&] { return counter.wakes > 0; }));
}

TEST_F(SocketStreamTest, AsksForOneByteAgain) {
  here_->wake_at(3000);
  const Counter counter(*here_);
  send(1);
  EXPECT_FALSE(woken_soon(counter));
  here_->wake_at(1);
  EXPECT_TRUE(turn_until([&] { return counter.wakes > 0; }));
}

TEST_F(SocketStreamTest, WakesForTheEndWhateverIsAskedFor) {
  here_->wake_at(3000);
  const Counter counter(*here_);
  send(1);
  there_.reset();
  EXPECT_TRUE(turn_until([&] { return counter.wakes > 0; }));
}

TEST_F(SocketStreamTest, WakesForAResetWhateverIsAskedFor) {
  here_->wake_at(3000);
  const Counter counter(*here_);
  send(1);
  there_->reset_on_close();
  there_.reset();
  EXPECT_TRUE(turn_until([&] { return counter.wakes > 0; }));
}

// More than a socket's buffer takes at first: the kernel makes room, or the two sides would wait for each other.
TEST_F(SocketStreamTest, CanAskForMoreThanTheBufferTakes) {
  constexpr size_t kMany = size_t{256} << 10;
  here_->wake_at(kMany);
  const Counter counter(*here_);
  send(kMany);
  EXPECT_TRUE(turn_until([&] { return counter.wakes > 0; }));
}

}  // namespace
}  // namespace kvferry
