#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <thread>

#include "engine/io/tls.h"
#include "engine/parcel.h"
#include "test/support/eventually.h"
#include "test/support/lines.h"
#include "test/support/peek.h"
#include "test/support/raw_peer.h"
#include "test/support/sanitized.h"
#include "test/support/trial.h"
#include "test/system/bystander.h"

// Who may talk to an engine, over real sockets: modes that match and modes that do not, and what those who may not come
// in can cost the others.

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

EngineConfig config_of(const std::string& name, const AuthConfig& auth, std::shared_ptr<Logger> logger = nullptr) {
  EngineConfig config = Bystanders::config(name);
  config.auth = auth;
  if (logger) config.logger = std::move(logger);
  return config;
}

// A connection that holds the right keys, or wrong ones, and may still lie.
class SecureRaw {
 public:
  SecureRaw(const std::string& address, const AuthConfig& auth)
      : context_(must(TlsContext::load(auth))),
        connection_(dial(address)),
        ssl_(context_->new_connection(false, nullptr)) {
    SSL_clear_mode(ssl_.get(), SSL_MODE_ENABLE_PARTIAL_WRITE);
    SSL_set_fd(ssl_.get(), connection_.get());
    connected_ = SSL_connect(ssl_.get()) == 1;
  }
  bool connected() const { return connected_; }
  bool send(const std::string& bytes) {
    size_t count = 0;
    return SSL_write_ex(ssl_.get(), bytes.data(), bytes.size(), &count) == 1 && count == bytes.size();
  }
  std::string receive(size_t count) {
    std::string out(count, '\0');
    size_t filled = 0;
    size_t got = 0;
    while (filled < count && SSL_read_ex(ssl_.get(), out.data() + filled, count - filled, &got) == 1) filled += got;
    out.resize(filled);
    return out;
  }
  bool is_closed() {
    while (receive(1).size() == 1) {
    }
    return true;
  }
  proto::Frame receive_frame(proto::Frame::BodyCase kind) {
    while (true) {
      const std::string head = receive(sizeof(uint32_t));
      uint32_t length = 0;
      if (head.size() != sizeof length) return {};
      std::memcpy(&length, head.data(), sizeof length);
      proto::Frame frame;
      if (!frame.ParseFromString(receive(length))) return {};
      if (frame.body_case() == kind) return frame;
    }
  }

 private:
  static UniqueFd dial(const std::string& address) {
    const auto raw = to_socket_address(must(parse_address(address, false)));
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const timeval limit{40, 0};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    KVF_CHECK(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&raw->storage), raw->length) == 0);
    return fd;
  }
  std::shared_ptr<const TlsContext> context_;
  UniqueFd connection_;
  SslPtr ssl_;
  bool connected_ = false;
};

proto::Frame psk_hello(const std::string& name) {
  proto::Frame frame = hello(name);
  frame.mutable_hello()->set_auth_mode(proto::AUTH_PSK);
  return frame;
}

// The reason why the first engine cannot talk to the second.
Error refusal(const EngineConfig& initiator, const EngineConfig& owner) {
  const auto second = must(Engine::create(owner));
  const auto first = must(Engine::create(initiator));
  const Stopwatch watch;
  const Status status = must(first->peer(second->address())).connect(seconds(30));
  EXPECT_LT(watch.elapsed(), seconds(3) * kSlower);
  EXPECT_FALSE(status.ok());
  EXPECT_TRUE(eventually([&] { return second->metrics().find("kvferry_complaints_total{") != std::string::npos; }));
  return status.ok() ? Error{} : status.error();
}

TEST(AuthTest, ModesThatDifferAreRefusedAtOnceAndSaidOnBothSides) {
  const std::pair<AuthMode, AuthMode> pairs[] = {{AuthMode::open, AuthMode::psk}, {AuthMode::open, AuthMode::mtls},
                                                 {AuthMode::psk, AuthMode::open}, {AuthMode::mtls, AuthMode::open},
                                                 {AuthMode::psk, AuthMode::mtls}, {AuthMode::mtls, AuthMode::psk}};
  for (const auto& [ours, theirs] : pairs) {
    SCOPED_TRACE(std::string(to_string(ours)) + " to " + std::string(to_string(theirs)));
    const auto lines = std::make_shared<Lines>();
    const Error why = refusal(config_of("a", auth_of(ours)), config_of("b", auth_of(theirs), lines));
    EXPECT_EQ(why.code, ErrorCode::permission_denied) << why.to_string();
    EXPECT_THAT(why.to_string(), HasSubstr("auth mode is"));
    EXPECT_THAT(lines->text(), HasSubstr("auth mode is"));
  }
}

TEST(AuthTest, AnotherSecretAndAnotherAuthorityAreRefusedAtOnce) {
  const auto others = must(bench::TrialKeys::create());
  for (const AuthMode mode : {AuthMode::psk, AuthMode::mtls}) {
    const Error why = refusal(config_of("a", must(others->of(mode))), config_of("b", auth_of(mode)));
    EXPECT_EQ(why.code, ErrorCode::permission_denied) << why.to_string();
  }
}

TEST(AuthTest, AnAddressThatOthersReachNeedsAModeAndTheErrorSaysWhich) {
  EngineConfig config = config_of("a", {});
  config.listen = "0.0.0.0:0";
  const auto refused = Engine::create(config);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, ::testing::AllOf(HasSubstr("KVFERRY_AUTH"), HasSubstr("KVFERRY_PSK_FILE"),
                                                        HasSubstr("KVFERRY_ALLOW_OPEN=1")));
  config.auth = auth_of(AuthMode::psk);
  const auto secured = must(Engine::create(config));
  EXPECT_THAT(secured->describe(), ::testing::AllOf(HasSubstr("\"auth\":\"psk\""), HasSubstr("\"kernel_tls\":\""),
                                                    HasSubstr("records in user space")));
  EXPECT_EQ(secured->self().auth, "psk");
  config.auth = {};
  config.allow_open = true;
  const auto lines = std::make_shared<Lines>();
  config.logger = lines;
  const auto open = must(Engine::create(config));
  EXPECT_THAT(open->describe(), HasSubstr("\"auth\":\"open\""));
  EXPECT_THAT(open->metrics(), HasSubstr("kvferry_auth_mode{mode=\"open\"} 1"));
  EXPECT_THAT(lines->text(), HasSubstr("auth mode open on 0.0.0.0:"));
}

TEST(AuthTest, SettingsThatContradictEachOtherAreRefused) {
  const auto from = [](std::map<std::string, std::string> values) {
    const auto config = EngineConfig::from_environment(Environment(std::move(values)));
    return config.ok() ? config->validate() : Status(config.error());
  };
  EXPECT_FALSE(from({{"KVFERRY_AUTH", "tls"}}).ok());
  EXPECT_FALSE(from({{"KVFERRY_AUTH", "psk"}}).ok());
  EXPECT_FALSE(from({{"KVFERRY_AUTH", "mtls"}, {"KVFERRY_TLS_CERT", "x"}}).ok());
  EXPECT_FALSE(from({{"KVFERRY_AUTH", "open"}, {"KVFERRY_PSK_FILE", "/x"}}).ok());
  // A secret that is named is meant.
  const std::map<std::string, std::string> secret_alone = {{"KVFERRY_PSK_FILE", "/x"}};
  const auto implied = EngineConfig::from_environment(Environment(secret_alone));
  EXPECT_EQ(implied->auth.mode, AuthMode::psk);
  EXPECT_TRUE(from({{"KVFERRY_STRICT", "1"}, {"KVFERRY_FABRICS", "local,tcp"}}).ok());
  EXPECT_FALSE(from({{"KVFERRY_STRICT", "1"}, {"KVFERRY_FABRICS", "local"}}).ok());
}

TEST(AuthTest, TheSecretIsNowhereToBeSeen) {
  const std::string secret = "a secret of forty letters that is unique";
  ASSERT_TRUE(trial_keys().write("unique", secret).ok());
  AuthConfig auth = auth_of(AuthMode::psk);
  auth.psk_file = trial_keys().path("unique");
  const auto lines = std::make_shared<Lines>();
  const auto owner = must(Engine::create(config_of("b", auth, lines)));
  const auto initiator = must(Engine::create(config_of("a", auth, lines)));
  ASSERT_TRUE(must(initiator->peer(owner->address())).connect(seconds(30)).ok());
  const auto stranger = must(Engine::create(config_of("c", auth_of(AuthMode::psk), lines)));
  EXPECT_FALSE(must(stranger->peer(owner->address())).connect(seconds(30)).ok());
  std::string said = lines->text();
  for (const Engine* engine : {owner.get(), initiator.get(), stranger.get()})
    said += engine->describe() + engine->metrics();
  EXPECT_THAT(said, ::testing::Not(HasSubstr(secret)));
  EXPECT_THAT(said, ::testing::Not(HasSubstr(secret.substr(10, 16))));
}

TEST(AuthTest, KeysAreExchangedWithoutARestart) {
  const auto keys = must(bench::TrialKeys::create());
  const std::string later(40, 'l');
  const auto owner = must(Engine::create(config_of("b", must(keys->psk()))));
  ASSERT_TRUE(keys->write("secret", later).ok());
  ASSERT_TRUE(keys->write("later", later).ok());
  AuthConfig ahead = must(keys->psk());
  ahead.psk_file = keys->path("later");
  const auto initiator = must(Engine::create(config_of("a", ahead)));
  const PeerRef peer = must(initiator->peer(owner->address()));
  EXPECT_TRUE(eventually([&] { return peer.connect(seconds(30)).ok(); }));

  // Certificates: the one in use runs out, and another takes its place.
  ASSERT_TRUE(keys->sign("worn", {"engine.trial", -7200, -3600, false}).ok());
  const auto served = must(Engine::create(config_of("d", keys->mtls_with("worn"))));
  const auto caller = must(Engine::create(config_of("c", must(keys->mtls()))));
  const PeerRef worn = must(caller->peer(served->address()));
  EXPECT_THAT(worn.connect(seconds(30)).error().to_string(), HasSubstr("expired"));
  ASSERT_TRUE(keys->sign("worn", {}).ok());
  EXPECT_TRUE(eventually([&] { return worn.connect(seconds(30)).ok(); }));
}

// A shared secret does not tell its holders apart: an engine must notice that it is led to itself.
TEST(AuthTest, AnEngineThatIsLedToItselfBySomebodyElseRefuses) {
  const auto engine = must(Engine::create(config_of("a", auth_of(AuthMode::psk))));
  RawListener between;
  std::thread relay([&] {
    const UniqueFd from = between.accept();
    if (!from) return;
    RawConnection to = RawConnection::dial(engine->address());
    const UniqueFd back(::dup(from.get()));
    std::thread down([&] {
      for (std::string bytes = to.receive(1); !bytes.empty(); bytes = to.receive(1))
        if (::send(back.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0) break;
    });
    char buffer[4096];
    for (ssize_t count = 1; count > 0;) {
      count = ::recv(from.get(), buffer, sizeof buffer, 0);
      if (count > 0) to.send({buffer, static_cast<size_t>(count)});
    }
    to.shut();
    down.join();
  });
  const Status status = must(engine->peer(between.address())).connect(seconds(30));
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(status.error().to_string(), HasSubstr("this engine itself"));
  EXPECT_TRUE(must(engine->peer(engine->address())).connect(seconds(30)).ok()) << "its own address is meant";
  between.stop();
  relay.join();
}

class Locked : public ::testing::Test {
 protected:
  Locked() : honest_(auth_of(AuthMode::psk)) { honest_.expect_work(); }
  Bystanders honest_;
};

TEST_F(Locked, ALaneTokenOpensOneLaneAndOnlyToWhoIsInTheSession) {
  const AuthConfig auth = auth_of(AuthMode::psk);
  SecureRaw session(honest_.owner().address(), auth);
  ASSERT_TRUE(session.connected());
  ASSERT_TRUE(session.send(encode_session_preface() + RawConnection::encode(psk_hello("holder"))));
  const proto::Welcome welcome = session.receive_frame(proto::Frame::kWelcome).welcome();
  ASSERT_FALSE(welcome.lane_tokens().empty());
  const std::string preface = encode_lane_preface({welcome.session_id(), welcome.lane_tokens(0), 1});
  tcp::Header read;
  read.type = tcp::FrameType::read;
  read.op = 5;
  const std::string request = lane_frame(read, span_table(honest_.region().id(), 0, 100));

  // In the clear the token opens nothing.
  RawConnection plain = RawConnection::dial(honest_.owner().address());
  plain.send(preface + request);
  EXPECT_TRUE(plain.is_closed());
  SecureRaw lane(honest_.owner().address(), auth);
  ASSERT_TRUE(lane.send(preface + request));
  EXPECT_EQ(lane.receive(tcp::Header::kBytes + 100).size(), tcp::Header::kBytes + 100);
  SecureRaw again(honest_.owner().address(), auth);
  ASSERT_TRUE(again.send(preface + request));
  EXPECT_EQ(again.receive(1), "");
  honest_.expect_work();
}

TEST_F(Locked, AnotherModeInsideTheHelloIsRefused) {
  SecureRaw session(honest_.owner().address(), auth_of(AuthMode::psk));
  ASSERT_TRUE(session.send(encode_session_preface() + RawConnection::encode(hello("downgraded"))));
  EXPECT_THAT(session.receive_frame(proto::Frame::kRefusal).refusal().message(), HasSubstr("auth mode is open"));
}

TEST_F(Locked, StrangersAndHandshakesThatEndInTheMiddleCostNobody) {
  std::string client_hello("\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", 11);
  client_hello += std::string(505, '\x17');
  for (const std::string& words : {std::string("GET / HTTP/1.1\r\n\r\n"), client_hello, client_hello.substr(0, 100),
                                   std::string(5000, '\xff'), encode_session_preface()}) {
    RawConnection stranger = RawConnection::dial(honest_.owner().address());
    stranger.send(words);
    EXPECT_TRUE(stranger.is_closed());
  }
  honest_.expect_work();
}

// A handshake that goes on for ever, a byte at a time, ends with the patience for all of it.
TEST_F(Locked, ASlowHandshakeEnds) {
  RawConnection slow = RawConnection::dial(honest_.owner().address());
  std::string client_hello("\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", 11);
  client_hello += std::string(400, '\x17');
  const SystemClock clock;
  const TimePoint began = clock.now();
  const Stopwatch watch;
  size_t sent = 0;
  EXPECT_TRUE(eventually([&] {
    const bool closed = clock.now() - began > milliseconds(25) * static_cast<int>(sent) &&
                        (sent >= client_hello.size() || !slow.send(client_hello.substr(sent++, 1)));
    return closed;
  }));
  EXPECT_LT(watch.elapsed(), seconds(8));
  EXPECT_LT(honest_.longest_wait(20), Bystanders::kBearable);
}

// 10,000 connections that say nothing at all: those who were there and those who come go on, memory does not.
TEST_F(Locked, TenThousandThatSayNothing) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  const size_t count = limit.rlim_cur >= 12000 ? 10000 : 2000;
  const uint64_t before = resident_bytes();
  std::vector<RawConnection> silent;
  std::vector<Duration> waits;
  for (size_t i = 0; i < count; ++i) {
    silent.push_back(RawConnection::dial(honest_.owner().address()));
    if (i % (count / 20) == 0) waits.push_back(honest_.longest_wait(5));
  }
  honest_.expect_work();
  const auto late = must(Engine::create(config_of("late", auth_of(AuthMode::psk))));
  EXPECT_TRUE(must(late->peer(honest_.owner().address())).connect(seconds(30)).ok()) << "a newcomer";
  const Duration longest = *std::max_element(waits.begin(), waits.end());
  const uint64_t grown = resident_bytes() - before;
  std::printf("%zu silent connections: the longest of 100 round trips of others took %.1f ms, memory grew %.1f MiB\n",
              count, static_cast<double>(longest.count()) / 1e6, static_cast<double>(grown) / 1048576);
  EXPECT_LT(longest, Bystanders::kBearable);
  EXPECT_LT(grown, uint64_t{kSanitized ? 512 : 96} << 20);
  EXPECT_TRUE(silent.front().is_closed());
  EXPECT_TRUE(eventually([&] {
    return honest_.owner().metrics().find("kvferry_complaints_total{cause=\"resource_exhausted\"}") !=
           std::string::npos;
  }));
}

// Many handshakes at once take turns with those whose connections stand.
TEST_F(Locked, AHerdOfNewcomersDoesNotHoldUpTheOthers) {
  std::vector<std::unique_ptr<Engine>> herd;
  for (int i = 0; i < 24; ++i)
    herd.push_back(must(Engine::create(config_of(fmt::format("n{}", i), auth_of(AuthMode::psk)))));
  std::atomic<int> connected{0};
  std::vector<std::thread> threads;
  for (const auto& engine : herd)
    threads.emplace_back([&] { connected += must(engine->peer(honest_.owner().address())).connect(seconds(20)).ok(); });
  const Duration longest = honest_.longest_wait(50);
  for (std::thread& thread : threads) thread.join();
  std::printf("24 newcomers: the longest of 50 round trips of another peer took %.1f ms\n",
              static_cast<double>(longest.count()) / 1e6);
  EXPECT_EQ(connected.load(), 24);
  EXPECT_LT(longest, Bystanders::kBearable);
}

// ---- strict

TEST(StrictTest, OpensNoRegionAndOffersNoLocalFabric) {
  EngineConfig config = config_of("owner", {});
  config.fabrics = {"local", "tcp"};
  config.strict = true;
  const auto owner = must(Engine::create(config));
  EXPECT_THAT(owner->describe(), ::testing::AllOf(HasSubstr("\"strict\":true"), HasSubstr("\"fabrics\":[\"tcp\"]")));
  std::vector<std::byte> theirs(4096, std::byte{7});
  const auto opened = owner->register_memory(theirs.data(), theirs.size(), MemoryKind::host, kRemoteRead);
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code, ErrorCode::permission_denied);
  const Region hidden = must(owner->register_memory(theirs.data(), theirs.size(), MemoryKind::host, kPrivate));
  config.strict = false;
  config.engine_id = "initiator";
  const auto initiator = must(Engine::create(config));
  std::vector<std::byte> ours(4096);
  const Region region = must(initiator->register_memory(ours.data(), ours.size(), MemoryKind::host, kPrivate));
  TransferRequest request;
  request.peer = must(initiator->peer(owner->address()));
  request.pairs = {{ours.data(), hidden.id(), 0, 4096}};
  const Outcome outcome = initiator->transfer(request);
  ASSERT_FALSE(outcome.status.ok());
  EXPECT_EQ(outcome.status.error().code, ErrorCode::permission_denied) << outcome.status.error().to_string();
  EXPECT_EQ(ours[0], std::byte{0});
}

}  // namespace
}  // namespace kvferry::test
