#include "test/support/link/link.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "test/support/eventually.h"

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr in_port_t kPort = 7100;
constexpr int kLongMs = 60'000;

// A TCP connection across a link: `client` on the left, `server` on the right.
class LinkTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = Link::why_not(); !reason.empty()) GTEST_SKIP() << reason;
    auto made = Link::create({.seed = 11});
    ASSERT_TRUE(made.ok()) << made.error().to_string();
    link_.emplace(std::move(made).value());
  }

  // A socket of `type`, bound to the port, in the namespace of `side`.
  UniqueFd bound(Side side, int type) {
    UniqueFd made;
    link_->run_in(side, [&] {
      made.reset(::socket(AF_INET, type | SOCK_CLOEXEC, 0));
      const sockaddr_in at = place(side);
      ASSERT_EQ(::bind(made.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at), 0);
    });
    return made;
  }

  static sockaddr_in place(Side side) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(kPort);
    ::inet_pton(AF_INET, Link::address(side).c_str(), &at.sin_addr);
    return at;
  }

  void connect_both() {
    const UniqueFd listener = bound(Side::right, SOCK_STREAM);
    ASSERT_EQ(::listen(listener.get(), 1), 0);
    client_ = bound(Side::left, SOCK_STREAM);
    const sockaddr_in at = place(Side::right);
    ASSERT_EQ(::connect(client_.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at), 0);
    server_.reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_TRUE(server_.valid());
  }

  void command(const std::string& line) {
    const auto answer = link_->command(line);
    ASSERT_TRUE(answer.ok()) << answer.error().to_string();
  }

  static bool readable(const UniqueFd& fd, int limit_ms) {
    pollfd event{fd.get(), POLLIN, 0};
    return ::poll(&event, 1, limit_ms) == 1;
  }

  // Sends one byte and waits for it at the other end and for its way back.
  Duration round_trip() {
    const TimePoint before = SystemClock().now();
    char byte = 'x';
    EXPECT_EQ(::send(client_.get(), &byte, 1, 0), 1);
    EXPECT_TRUE(readable(server_, kLongMs));
    EXPECT_EQ(::recv(server_.get(), &byte, 1, 0), 1);
    EXPECT_EQ(::send(server_.get(), &byte, 1, 0), 1);
    EXPECT_TRUE(readable(client_, kLongMs));
    EXPECT_EQ(::recv(client_.get(), &byte, 1, 0), 1);
    return SystemClock().now() - before;
  }

  // Moves `size` bytes from the client to the server, compares them, and returns how long it took.
  Duration stream(size_t size) {
    std::string sent(size, '\0');
    for (size_t i = 0; i < size; ++i) sent[i] = static_cast<char>(i * 31 + i / 251);
    const TimePoint before = SystemClock().now();
    std::thread sender([&] {
      for (size_t at = 0; at < size;) {
        const ssize_t taken = ::send(client_.get(), sent.data() + at, size - at, MSG_NOSIGNAL);
        if (taken <= 0) return;
        at += static_cast<size_t>(taken);
      }
    });
    std::string received(size, '\0');
    size_t at = 0;
    while (at < size && readable(server_, kLongMs)) {
      const ssize_t taken = ::recv(server_.get(), received.data() + at, size - at, 0);
      if (taken <= 0) break;
      at += static_cast<size_t>(taken);
    }
    const Duration took = SystemClock().now() - before;
    if (at < size) ::shutdown(client_.get(), SHUT_RDWR);
    sender.join();
    EXPECT_TRUE(received == sent) << at << " of " << size << " bytes arrived";
    return took;
  }

  std::optional<Link> link_;
  UniqueFd client_;
  UniqueFd server_;
};

TEST_F(LinkTest, CarriesTcpBothWays) {
  connect_both();
  round_trip();
  stream(4 << 20);
  const auto stats = link_->stats();
  ASSERT_TRUE(stats.ok());
  EXPECT_GT(stats->forwarded, 1000u);
  EXPECT_EQ(stats->lost + stats->cut + stats->duplicated, 0u);
}

TEST_F(LinkTest, DelaysEachWay) {
  connect_both();
  command("delay 30ms");
  EXPECT_GE(round_trip(), milliseconds(60));
  command("delay 0 left");
  const Duration one_way = round_trip();
  EXPECT_GE(one_way, milliseconds(30));
  command("delay 0");
  // The fastest of many, on a machine that may be busy.
  Duration fastest = seconds(1);
  for (int i = 0; i < 1000 && fastest >= milliseconds(30); ++i) fastest = std::min(fastest, round_trip());
  EXPECT_LT(fastest, milliseconds(30));
}

TEST_F(LinkTest, LosesPacketsThatTcpSendsAgain) {
  connect_both();
  command("loss 0.02");
  stream(1 << 20);
  EXPECT_GT(link_->stats()->lost, 0u);
}

TEST_F(LinkTest, LosesTheAskedShareOfDatagrams) {
  const UniqueFd from = bound(Side::left, SOCK_DGRAM);
  const UniqueFd to = bound(Side::right, SOCK_DGRAM);
  const sockaddr_in at = place(Side::right);
  const auto send_one = [&] {
    return ::sendto(from.get(), "x", 1, 0, reinterpret_cast<const sockaddr*>(&at), sizeof at) == 1;
  };
  const auto take_one = [&] {
    char byte = 0;
    return ::recv(to.get(), &byte, 1, 0) == 1;
  };
  constexpr uint64_t kGroups = 20;
  constexpr uint64_t kGroup = 100;  // fewer than a tun device queues
  command("loss 0.5 left");
  uint64_t arrived = 0;
  for (uint64_t group = 0; group < kGroups; ++group) {
    for (uint64_t i = 0; i < kGroup; ++i) ASSERT_TRUE(send_one());
    // The link passes packets before it answers: when its figures say that all went through it, all have arrived.
    ASSERT_TRUE(eventually([&] {
      const auto stats = link_->stats();
      return stats.ok() && stats->forwarded + stats->lost >= (group + 1) * kGroup;
    }));
    while (readable(to, 0) && take_one()) ++arrived;
  }
  EXPECT_NEAR(static_cast<double>(arrived), 0.5 * kGroups * kGroup, 120);
  EXPECT_EQ(arrived, link_->stats()->forwarded);
}

TEST_F(LinkTest, LimitsTheRate) {
  connect_both();
  command("rate 2M");
  // Never faster, and as fast as that in one of a few, on a machine that may be busy.
  double fastest = 0;
  for (int i = 0; i < 40 && fastest <= 0.5; ++i)
    fastest = std::max(fastest, 0.25 / kvferry::seconds(stream(256 << 10)));
  EXPECT_LT(fastest, 2.1);
  EXPECT_GT(fastest, 0.5);
}

TEST_F(LinkTest, CarriesNothingWhileCutAndGoesOnAfterwards) {
  connect_both();
  round_trip();
  command("cut");
  ASSERT_EQ(::send(client_.get(), "x", 1, 0), 1);
  EXPECT_FALSE(readable(server_, 300));
  // It answers commands before it looks at packets.
  EXPECT_TRUE(eventually([&] { return link_->stats()->cut > 0; }));
  command("heal");
  EXPECT_TRUE(readable(server_, kLongMs)) << "TCP sends the byte again";
}

TEST_F(LinkTest, CutsOneWayOnly) {
  connect_both();
  command("cut left");
  ASSERT_EQ(::send(client_.get(), "x", 1, 0), 1);
  ASSERT_EQ(::send(server_.get(), "y", 1, 0), 1);
  EXPECT_TRUE(readable(client_, kLongMs));
  EXPECT_FALSE(readable(server_, 200));
}

TEST_F(LinkTest, RunsProcessesOnEitherSide) {
  ProcessOptions options;
  options.arguments = {"-c", "ip -4 -o address show dev kvf0"};
  options.network_namespace = link_->network_namespace(Side::right);
  auto process = Process::spawn("/bin/sh", options);
  ASSERT_TRUE(process.ok());
  const auto line = process->read_line_with("inet", seconds(60));
  ASSERT_TRUE(line.ok()) << line.error().to_string();
  EXPECT_NE(line->find(Link::address(Side::right) + "/24"), std::string::npos) << *line;
}

TEST_F(LinkTest, RefusesCommandsThatItDoesNotKnow) {
  const auto answer = link_->command("explode");
  ASSERT_FALSE(answer.ok());
  EXPECT_NE(answer.error().cause.find("explode"), std::string::npos);
}

TEST_F(LinkTest, KeepsTwoLinksApart) {
  auto other = Link::create({.seed = 12});
  ASSERT_TRUE(other.ok());
  connect_both();  // both have the same addresses, in namespaces of their own
  ASSERT_TRUE(other->command("cut").ok());
  round_trip();
}

}  // namespace
}  // namespace kvferry::test
