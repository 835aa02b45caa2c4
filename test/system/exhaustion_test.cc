#include <gmock/gmock.h>
#include <sys/resource.h>

#include "test/support/eventually.h"
#include "test/support/lines.h"
#include "test/support/peek.h"
#include "test/support/raw_peer.h"
#include "test/support/sanitized.h"
#include "test/system/bystander.h"

// What one peer may take of an engine: it is limited, named in a metric and a line, and the others keep their service.

namespace kvferry::test {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

constexpr const char* kAttacker = "127.0.0.2";

// The value of a metric, the sum over its labels; 0 while there is none.
uint64_t metric(const Engine& engine, const std::string& name) {
  const std::string page = engine.metrics();
  uint64_t sum = 0;
  for (size_t at = page.find("\n" + name); at != std::string::npos; at = page.find("\n" + name, at + 1)) {
    const size_t value = page.find(' ', at + 1) + 1;
    sum += std::stoull(page.substr(value, page.find('\n', value) - value));
  }
  return sum;
}

class LimitsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
  void start(const std::function<void(EngineConfig&)>& change = {}) {
    honest_.emplace(AuthConfig{}, [&](EngineConfig& config) {
      config.logger = lines_;
      if (change) change(config);
    });
    honest_->expect_work();
  }
  Engine& owner() { return honest_->owner(); }
  RawConnection attack() { return RawConnection::dial(owner().address(), kAttacker); }
  void note_wait() { longest_ = std::max(longest_, honest_->longest_wait(5)); }
  // A session that says that it lives, and takes nothing of what it has asked for. How long it was there.
  Duration take_nothing_of_a_lane() {
    RawConnection session = attack();
    EXPECT_TRUE(session.send(encode_session_preface() + RawConnection::encode(hello("deaf"))));
    const proto::Welcome welcome = session.receive_frame(proto::Frame::kWelcome).welcome();
    if (welcome.lane_tokens().empty()) return {};
    RawConnection lane = attack();
    lane.read_little();
    tcp::Header ask;
    ask.type = tcp::FrameType::read;
    std::string asks = encode_lane_preface({welcome.session_id(), welcome.lane_tokens(0), 1});
    for (int i = 0; i < 100; ++i) asks += lane_frame(ask, span_table(honest_->region().id(), 0, Bystanders::kBytes));
    EXPECT_TRUE(lane.send(asks));
    proto::Frame alive;
    alive.mutable_heartbeat();
    const auto asked = std::chrono::steady_clock::now();
    EXPECT_TRUE(eventually(
        [&] {
          note_wait();
          return !session.send(RawConnection::encode(alive));
        },
        seconds(60)));
    return std::chrono::steady_clock::now() - asked;
  }
  // Goes on in a thread of its own, while the others' transfers are watched.
  void expect_service_during(const char* what, const std::function<void()>& attack) {
    const Bystanders::Service service = honest_->service_during(attack);
    service.print(what);
    EXPECT_LT(service.p99, Bystanders::kUsual);
    EXPECT_LT(service.longest, Bystanders::kBearable);
    honest_->expect_work();
  }
  // How the others fared meanwhile.
  void expect_service(const std::string& what) {
    std::printf("%s: the longest of the others' round trips took %.1f ms\n", what.c_str(),
                static_cast<double>(longest_.count()) / 1e6);
    EXPECT_LT(longest_, Bystanders::kBearable);
    honest_->expect_work();
  }
  void expect_named(const std::string& words, const std::string& who) {
    EXPECT_TRUE(eventually([&] { return lines_->text().find(words) != std::string::npos; })) << lines_->text();
    // A connection's own line may come before the complaint about it.
    EXPECT_TRUE(
        eventually([&] { return metric(owner(), "kvferry_complaints_total{cause=\"resource_exhausted\"}") > 0; }));
    EXPECT_THAT(lines_->text(), HasSubstr(who));
  }

  const std::shared_ptr<Lines> lines_ = std::make_shared<Lines>();
  std::optional<Bystanders> honest_;
  Duration longest_{0};
};

TEST_F(LimitsTest, SessionsOfOneHostAreLimitedAndNamed) {
  start([](EngineConfig& config) {
    config.max_sessions_per_host = 50;
    config.heartbeat = seconds(10);  // those that were let in stay
  });
  std::vector<RawConnection> sessions;
  for (int i = 0; i < 60; ++i) {
    sessions.push_back(attack());
    sessions.back().send(encode_session_preface() + RawConnection::encode(hello("flood" + std::to_string(i))));
  }
  EXPECT_TRUE(sessions.back().is_closed());
  expect_named("max_sessions_per_host (50)", kAttacker);
  EXPECT_TRUE(
      eventually([&] { return metric(owner(), "kvferry_complaints_total{cause=\"resource_exhausted\"}") == 10; }));
}

TEST_F(LimitsTest, TenThousandSessionsLeaveTheOthersTheirs) {
  start([](EngineConfig& config) {
    config.max_sessions_per_host = 500;
    config.missed_heartbeats = 10;  // silence frees places
  });
  const uint64_t before = resident_bytes();
  std::vector<RawConnection> sessions;
  uint64_t most = 0;
  expect_service_during("10,000 sessions", [&] {
    for (int i = 0; i < 10000; ++i) {
      // A place that is free again (they send no heartbeats) is taken again.
      if (sessions.size() == 2000) sessions.erase(sessions.begin(), sessions.begin() + 1000);
      sessions.push_back(attack());
      sessions.back().send(encode_session_preface() + RawConnection::encode(hello("flood" + std::to_string(i))));
      if (i % 500 == 0) most = std::max(most, metric(owner(), "kvferry_sessions "));
    }
  });
  EXPECT_TRUE(sessions.back().is_closed());
  EXPECT_GT(most, 100u);
  EXPECT_LE(most, 501u);
  expect_named("max_sessions_per_host (500)", kAttacker);
  EXPECT_TRUE(eventually([&] { return metric(owner(), "kvferry_strangers_total") > 1000; }));
  if (!kSanitized) {
    EXPECT_LT(resident_bytes() - before, uint64_t{96} << 20);
  }
}

TEST_F(LimitsTest, ConnectionsOfOneHostAreLimitedAndNamed) {
  start([](EngineConfig& config) { config.max_connections = 100; });
  std::vector<RawConnection> silent;
  for (int i = 0; i < 200; ++i) silent.push_back(attack());
  EXPECT_TRUE(silent.back().is_closed());
  expect_named("three quarters of max_connections (100)", kAttacker);
  note_wait();
  const auto late = must(Engine::create(Bystanders::config("late")));
  EXPECT_TRUE(must(late->peer(owner().address())).connect(seconds(30)).ok()) << "a newcomer from another host";
  silent.clear();
  EXPECT_TRUE(eventually([&] {
    RawConnection again = attack();
    again.send(encode_session_preface() + RawConnection::encode(hello("again")));
    return again.receive_frame(proto::Frame::kWelcome).body_case() == proto::Frame::kWelcome;
  })) << "places that were given up are free again";
  expect_service("200 connections");
}

TEST_F(LimitsTest, AFrameOfFourGibibytesIsNamed) {
  start();
  RawConnection liar = attack();
  std::string length;
  ByteWriter(length).put(UINT32_MAX);
  const uint64_t before = resident_bytes();
  liar.send(encode_session_preface() + RawConnection::encode(hello()) + length);
  EXPECT_TRUE(liar.is_closed());
  EXPECT_LT(resident_bytes(), before + (uint64_t{16} << 20));
  EXPECT_TRUE(eventually([&] { return metric(owner(), "kvferry_complaints_total{cause=\"protocol\"}") == 1; }));
  EXPECT_TRUE(
      eventually([&] { return lines_->text().find("4294967295 bytes is over the limit") != std::string::npos; }));
  expect_service_during("frames of 4 GiB", [&] {
    for (int i = 0; i < 300; ++i) {
      RawConnection again = attack();
      again.send(encode_session_preface() + RawConnection::encode(hello()) + length);
      EXPECT_TRUE(again.is_closed());
    }
  });
}

// It asks, and never takes an answer.
TEST_F(LimitsTest, ASessionThatNeverReadsIsGivenUpAndNamed) {
  start();
  proto::Frame wanted;
  wanted.mutable_lane_tokens_wanted();
  std::string asks;
  for (int i = 0; i < 1000; ++i) asks += RawConnection::encode(wanted);
  const uint64_t before = resident_bytes();
  uint64_t most = 0;
  const auto said = [&](const char* words) { return lines_->text().find(words) != std::string::npos; };
  for (int attempt = 0; attempt < 5 && !said("does not read its session"); ++attempt) {
    const std::string name = "deaf" + std::to_string(attempt);
    RawConnection liar = attack();
    liar.read_little();
    ASSERT_TRUE(liar.send(encode_session_preface() + RawConnection::encode(hello(name))));
    int bursts = 0;
    for (; bursts < 2000 && liar.send(asks); ++bursts) {
      if (bursts % 20 != 0) continue;
      note_wait();
      most = std::max(most, resident_bytes());
    }
    EXPECT_LT(bursts, 2000);
    EXPECT_TRUE(eventually([&] { return said(("\"" + name + "\" ended").c_str()); }));
    // Where the machine stands still, the kernel may be first.
    if (!said("Connection timed out")) break;
  }
  expect_named("does not read its session", "\"deaf");
  if (!kSanitized) {
    EXPECT_LT(most, before + (uint64_t{32} << 20));
  }
  expect_service("a session that never reads");
}

// It says that it lives, and takes nothing of what it has asked for.
TEST_F(LimitsTest, ALaneThatIsNeverReadEndsTheSessionAndIsNamed) {
  start([](EngineConfig& config) {
    config.heartbeat = std::chrono::milliseconds(100);
    config.missed_heartbeats = 10;  // ten times that: before the kernel gives up the lane
  });
  Duration there{0};
  for (int attempt = 0; attempt < 5; ++attempt) {
    const Stopwatch watch;
    there = take_nothing_of_a_lane();
    // Else the machine's silence may have ended it.
    const bool named = lines_->text().find("does not read its lane") != std::string::npos;
    if (named || watch.stood_still() < std::chrono::milliseconds(500)) break;
  }
  EXPECT_GT(there, seconds(2)) << "ended for another reason";
  expect_named("does not read its lane", "\"deaf\"");
  expect_service("a lane that is never read");
}

// They make room among themselves: a slow newcomer of another host, who was there before them all, keeps its place.
TEST_F(LimitsTest, NewcomersOfOneHostCostNoOtherItsPlace) {
  start();
  RawConnection slow = RawConnection::dial(owner().address(), "127.0.0.3");
  const std::string words = encode_session_preface() + RawConnection::encode(hello("slow"));
  ASSERT_TRUE(slow.send(words.substr(0, 3)));
  std::vector<RawConnection> silent;
  for (int i = 0; i < 700; ++i) silent.push_back(attack());
  EXPECT_TRUE(silent.front().is_closed());
  expect_named("max_pending (512)", kAttacker);
  ASSERT_TRUE(slow.send(words.substr(3)));
  EXPECT_EQ(slow.receive_frame(proto::Frame::kWelcome).body_case(), proto::Frame::kWelcome);
  honest_->expect_work();
}

// Requests that are refused are answered, too, and nobody takes the answers: no more requests are read then.
TEST_F(LimitsTest, RefusalsThatAreNeverReadAreNotHeapedUp) {
  start();
  for (const tcp::FrameType type : {tcp::FrameType::read, tcp::FrameType::write, tcp::FrameType::fetch}) {
    RawConnection session = attack();
    EXPECT_TRUE(session.send(encode_session_preface() + RawConnection::encode(hello("deaf"))));
    const proto::Welcome welcome = session.receive_frame(proto::Frame::kWelcome).welcome();
    ASSERT_FALSE(welcome.lane_tokens().empty());
    RawConnection lane = attack();
    lane.read_little();
    ASSERT_TRUE(lane.send(encode_lane_preface({welcome.session_id(), welcome.lane_tokens(0), 1})));
    tcp::Header ask;
    ask.type = type;
    if (type == tcp::FrameType::write) ask.payload_bytes = 1;
    std::string one = lane_frame(ask, type == tcp::FrameType::fetch ? "x" : span_table(1, 0, 1));
    if (type == tcp::FrameType::write) one += 'x';
    constexpr size_t kEnough = size_t{64} << 20;  // what kernels keep on the way is a tenth of that
    EXPECT_LT(lane.send_until_stuck(one, kEnough, std::chrono::milliseconds(500 * kSlower)), kEnough)
        << "requests of type " << static_cast<int>(type);
  }
  honest_->expect_work();
}

// None of them holds as much as one session may.
TEST_F(LimitsTest, FramesThatNeverBecomeWholeAreLimitedTogether) {
  start([](EngineConfig& config) { config.max_session_bytes = size_t{16} << 20; });
  proto::Frame large;
  large.mutable_notify()->set_payload(std::string(1'000'000, 'x'));
  const std::string half = RawConnection::encode(large).substr(0, 900'000);
  std::vector<RawConnection> sessions;
  for (int i = 0; i < 40; ++i) {
    sessions.push_back(attack());
    sessions.back().send(encode_session_preface() + RawConnection::encode(hello("half" + std::to_string(i))) + half);
  }
  expect_named("max_session_bytes (16777216)", "\"half");
  note_wait();
  expect_service("frames that never become whole");
}

}  // namespace
}  // namespace kvferry::test
