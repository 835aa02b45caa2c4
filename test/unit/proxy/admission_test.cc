#include "proxy/admission.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <list>
#include <vector>

namespace kvferry::proxy {
namespace {

namespace asio = boost::asio;
using Verdict = Admission::Verdict;

// One that asks for nothing and may leave.
class Client final : public http::ResponseWriter {
 public:
  void leave() {
    gone_ = true;
    if (const auto notice = std::exchange(notice_, nullptr)) notice();
  }
  asio::awaitable<Status> send(http::Response) override { co_return Status(); }
  asio::awaitable<Status> start(int, const http::Headers&) override { co_return Status(); }
  asio::awaitable<Status> write(std::string_view) override { co_return Status(); }
  asio::awaitable<Status> finish() override { co_return Status(); }
  asio::awaitable<Status> raw(std::string_view) override { co_return Status(); }
  void raw_end(bool) override {}
  Result<bool> raw_now(std::string_view) override { return true; }
  bool started() const override { return false; }
  bool keep_alive() const override { return true; }
  bool gone() const override { return gone_; }
  void on_gone(std::function<void()> notice) override { notice_ = std::move(notice); }

 private:
  std::function<void()> notice_;
  bool gone_ = false;
};

class AdmissionTest : public testing::Test {
 protected:
  // Waits for its place and gives it back at once.
  void comes(Client& client) {
    asio::co_spawn(
        loop,
        [this, &client]() -> asio::awaitable<void> {
          const Verdict verdict = co_await admission.enter(client);
          verdicts.push_back(verdict);
          if (verdict != Verdict::admitted) co_return;
          deepest = std::max(deepest, ++depth);
          admission.leave();
          --depth;
        },
        asio::detached);
    settle();
  }
  // The one that runs at the beginning.
  void takes_the_place() {
    asio::co_spawn(
        loop, [this]() -> asio::awaitable<void> { (void)co_await admission.enter(first); }, asio::detached);
    settle();
  }
  void settle() {
    do loop.restart();
    while (loop.poll() > 0);
  }

  asio::io_context loop{1};
  SystemClock clock;
  http::Deadlines deadlines{loop, clock};
  Metrics metrics;
  Admission admission{loop, deadlines, metrics, {1, 200, std::chrono::hours(1)}};
  Client first;
  std::list<Client> clients{100};
  std::vector<Verdict> verdicts;
  int depth = 0, deepest = 0;
};

TEST_F(AdmissionTest, ManyFollowEachOtherAndNotInsideOfEachOther) {
  takes_the_place();
  for (Client& client : clients) comes(client);
  EXPECT_TRUE(verdicts.empty());
  admission.leave();
  settle();
  EXPECT_EQ(verdicts, std::vector<Verdict>(100, Verdict::admitted));
  EXPECT_EQ(deepest, 1);
  EXPECT_EQ(admission.running(), 0U);
}

TEST_F(AdmissionTest, WhoLeavesTheQueueIsOutOfIt) {
  takes_the_place();
  for (Client& client : clients) comes(client);
  for (Client& client : clients) client.leave();
  settle();
  EXPECT_EQ(verdicts, std::vector<Verdict>(100, Verdict::left));
  EXPECT_EQ(metrics.queued.value(), 0);
  admission.leave();
  EXPECT_EQ(admission.running(), 0U);
}

// In the same turn, whichever of the two comes first.
TEST_F(AdmissionTest, WhoLeavesWhenItsPlaceComesHandsItOn) {
  takes_the_place();
  for (Client& client : clients) comes(client);
  const auto middle = std::next(clients.begin(), 50);
  std::for_each(std::next(clients.begin()), middle, [](Client& client) { client.leave(); });
  admission.leave();
  std::for_each(middle, std::prev(clients.end()), [](Client& client) { client.leave(); });
  clients.front().leave();
  settle();
  EXPECT_EQ(std::count(verdicts.begin(), verdicts.end(), Verdict::left), 99);
  EXPECT_EQ(verdicts.back(), Verdict::admitted);
  EXPECT_EQ(metrics.queued.value(), 0);
  EXPECT_EQ(admission.running(), 0U);
}

}  // namespace
}  // namespace kvferry::proxy
