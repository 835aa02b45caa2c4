#include <gmock/gmock.h>

#include <random>

#include "test/support/eventually.h"
#include "test/support/peek.h"
#include "test/support/process.h"
#include "test/support/raw_peer.h"
#include "test/system/bystander.h"

// Whoever reaches an engine's port: strangers that speak something else, and initiators that lie. The connection ends,
// no byte of memory changes that was not open to it, and those who were there are not delayed.

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class LyingInitiator : public ::testing::Test {
 protected:
  struct Session {
    RawConnection connection;
    proto::Welcome welcome;
  };
  Session greet() {
    RawConnection connection = RawConnection::dial(honest_.owner().address());
    EXPECT_TRUE(connection.send(encode_session_preface() + RawConnection::encode(hello())));
    proto::Welcome welcome = connection.receive_frame(proto::Frame::kWelcome).welcome();
    EXPECT_FALSE(welcome.lane_tokens().empty());
    return {std::move(connection), std::move(welcome)};
  }
  RawConnection open_lane(const Session& session, uint32_t id = 1) {
    RawConnection lane = RawConnection::dial(honest_.owner().address());
    const LanePreface preface{session.welcome.session_id(), session.welcome.lane_tokens(static_cast<int>(id) - 1), id};
    EXPECT_TRUE(lane.send(encode_lane_preface(preface)));
    return lane;
  }
  tcp::Header header(tcp::FrameType type, uint64_t payload = 0) {
    tcp::Header made;
    made.type = type;
    made.op = 5;
    made.payload_bytes = payload;
    return made;
  }
  // The session frame ends the session.
  void expect_session_ends(const std::string& bytes) {
    Session session = greet();
    session.connection.send(bytes);
    EXPECT_TRUE(session.connection.is_closed());
    honest_.expect_work();
  }
  // The lane frame ends the lane, and changes nothing.
  void expect_lane_ends(const std::string& bytes) {
    const std::vector<std::byte> before = honest_.theirs();
    const Session session = greet();
    RawConnection lane = open_lane(session);
    lane.send(bytes);
    EXPECT_TRUE(lane.is_closed());
    EXPECT_TRUE(honest_.theirs() == before);
    honest_.expect_work();
  }

  Bystanders honest_;
};

TEST_F(LyingInitiator, StrangersOfEveryKind) {
  honest_.expect_work();
  std::string random(5000, '\0');
  std::mt19937 numbers(3);
  for (char& c : random) c = static_cast<char>(numbers());
  const std::string client_hello("\x16\x03\x01\x00\x64\x01\x00\x00\x60\x03\x03" + std::string(95, '\x17'));
  for (const std::string& words :
       {std::string("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), client_hello, random, std::string("SSH-2.0-OpenSSH_9.2\r\n"),
        std::string("KVFERRY2S\0\0\0\0\0\0\0", 16), std::string("KVFERRY1X\0\0\0\0\0\0\0", 16)}) {
    RawConnection stranger = RawConnection::dial(honest_.owner().address());
    stranger.send(words);
    EXPECT_TRUE(stranger.is_closed()) << words.substr(0, 10);
  }
  honest_.expect_work();
  EXPECT_TRUE(eventually([&] {
    return honest_.owner().metrics().find("kvferry_strangers_total 6\n") != std::string::npos;
  })) << honest_.owner().metrics();
}

TEST_F(LyingInitiator, ScannersThatSayNothingDelayNobodyAndAreSentAway) {
  std::vector<RawConnection> scanners;
  for (int i = 0; i < 300; ++i) scanners.push_back(RawConnection::dial(honest_.owner().address()));
  for (int i = 0; i < 50; ++i) scanners.back().send("KVF");
  EXPECT_LT(honest_.longest_wait(100), Bystanders::kBearable);
  honest_.expect_work();
  EXPECT_TRUE(scanners.front().is_closed());
  EXPECT_TRUE(scanners.back().is_closed());
}

// Real programs, without a pause, while transfers are under way.
TEST_F(LyingInitiator, AFloodOfStrangersDelaysNobody) {
  const std::string address = honest_.owner().address();
  const auto strangers = [&] {
    const std::string metrics = honest_.owner().metrics();
    return std::stoull(metrics.substr(metrics.find("\nkvferry_strangers_total ") + 25));
  };
  const std::string port = address.substr(address.rfind(':') + 1);
  Process flood = must(Process::spawn(KVF_STRANGER, std::vector<std::string>{"flood", port}));
  ASSERT_TRUE(flood.read_line_with("flooding", seconds(60)).ok());
  const uint64_t before = strangers();
  int rounds = 0;
  EXPECT_TRUE(eventually([&] {
    honest_.expect_work();
    EXPECT_LT(honest_.longest_wait(5), Bystanders::kBearable);
    return ++rounds >= 20 && strangers() > before + 50;
  }));
  EXPECT_FALSE(flood.wait(milliseconds(0)).ok()) << "the flood has ended";
}

TEST_F(LyingInitiator, ASessionThatSaysNoHello) {
  Bystanders impatient({}, [](EngineConfig& config) { config.missed_heartbeats = 10; });
  RawConnection silent = RawConnection::dial(impatient.owner().address());
  ASSERT_TRUE(silent.send(encode_session_preface()));
  EXPECT_TRUE(silent.is_closed());
}

TEST_F(LyingInitiator, AHelloThatQuotesAMegabyte) {
  proto::Frame frame = hello();
  frame.mutable_hello()->add_required_features(std::string((size_t{1} << 20) - 100, 'f'));
  RawConnection connection = RawConnection::dial(honest_.owner().address());
  ASSERT_TRUE(connection.send(encode_session_preface() + RawConnection::encode(frame)));
  const proto::Refusal refusal = connection.receive_frame(proto::Frame::kRefusal).refusal();
  EXPECT_EQ(refusal.code(), static_cast<uint32_t>(ErrorCode::unsupported));
  EXPECT_LT(refusal.message().size(), 4096u);
  honest_.expect_work();
}

// An initiator that has lost its session names it when it dials again. Nobody else can end it that way.
TEST_F(LyingInitiator, AHelloEndsTheSessionThatItReplacesIfItIsItsOwn) {
  Session session = greet();
  RawConnection lane = open_lane(session);
  const auto dial_again = [&](uint64_t incarnation) {
    proto::Frame frame = hello();
    frame.mutable_hello()->set_incarnation(incarnation);
    frame.mutable_hello()->set_replaces_session(session.welcome.session_id());
    RawConnection connection = RawConnection::dial(honest_.owner().address());
    EXPECT_TRUE(connection.send(encode_session_preface() + RawConnection::encode(frame)));
    connection.receive_frame(proto::Frame::kWelcome);
    return connection;
  };
  const uint64_t own = hello().hello().incarnation();
  const RawConnection stranger = dial_again(own + 1);
  proto::Frame beat;
  beat.mutable_heartbeat()->set_number(7);
  ASSERT_TRUE(session.connection.send_frame(beat));
  EXPECT_EQ(session.connection.receive_frame(proto::Frame::kHeartbeatEcho).heartbeat_echo().number(), 7u);
  const RawConnection again = dial_again(own);
  const proto::Refusal refusal = session.connection.receive_frame(proto::Frame::kRefusal).refusal();
  EXPECT_THAT(refusal.message(), ::testing::HasSubstr("dialled again"));
  EXPECT_TRUE(session.connection.is_closed());
  EXPECT_TRUE(lane.is_closed());
  honest_.expect_work();
}

// An answer that quoted it would not fit a frame.
TEST_F(LyingInitiator, AClaimThatQuotesAMegabyte) {
  Session session = greet();
  proto::Frame claim;
  claim.mutable_claim()->set_number(1);
  claim.mutable_claim()->set_transfer_id("t");
  claim.mutable_claim()->set_expected_instance_id(std::string((size_t{1} << 20) - 64, 'i'));
  ASSERT_TRUE(session.connection.send_frame(claim));
  const proto::Frame answer = session.connection.receive_frame(proto::Frame::kTicket);
  EXPECT_EQ(answer.ticket().code(), static_cast<uint32_t>(ErrorCode::invalid_argument));
  honest_.expect_work();
}

TEST_F(LyingInitiator, HellosThatMustBeRefusedByName) {
  const auto refusal_of = [&](const proto::Frame& frame) {
    RawConnection connection = RawConnection::dial(honest_.owner().address());
    EXPECT_TRUE(connection.send(encode_session_preface() + RawConnection::encode(frame)));
    return connection.receive_frame(proto::Frame::kRefusal).refusal().message();
  };
  proto::Frame versions = hello();
  versions.mutable_hello()->set_version_min(7);
  versions.mutable_hello()->set_version_max(9);
  EXPECT_THAT(refusal_of(versions), ::testing::HasSubstr("7 to 9"));
  proto::Frame feature = hello();
  feature.mutable_hello()->add_required_features("teleport");
  EXPECT_THAT(refusal_of(feature), ::testing::HasSubstr("\"teleport\""));
  proto::Frame other = hello();
  other.mutable_hello()->set_expected_engine_id("somebody");
  EXPECT_THAT(refusal_of(other), ::testing::HasSubstr("\"somebody\" is not here"));
  proto::Frame locked = hello();
  locked.mutable_hello()->set_auth_mode(proto::AUTH_PSK);
  EXPECT_THAT(refusal_of(locked), ::testing::HasSubstr("auth mode"));
  EXPECT_THAT(refusal_of(hello("")), ::testing::HasSubstr("engine id"));
  EXPECT_THAT(refusal_of(hello(std::string(300, 'x'))), ::testing::HasSubstr("engine id"));
}

TEST_F(LyingInitiator, SessionFramesThatAreTooLongBrokenOrOutOfPlace) {
  std::string oversized;
  ByteWriter(oversized).put(uint32_t{(1u << 20) + 1});
  expect_session_ends(oversized);
  expect_session_ends(std::string("\x05\0\0\0\xff\xff\xff\xff\xff", 9));
  expect_session_ends(RawConnection::encode(hello()));  // twice
}

TEST_F(LyingInitiator, ASessionThatFallsSilentInTheMiddleOfAFrameIsEndedByTheHeartbeats) {
  Bystanders impatient({}, [](EngineConfig& config) { config.missed_heartbeats = 10; });
  RawConnection silent = RawConnection::dial(impatient.owner().address());
  ASSERT_TRUE(silent.send(encode_session_preface() + RawConnection::encode(hello())));
  EXPECT_TRUE(silent.receive_frame(proto::Frame::kWelcome).has_welcome());
  ASSERT_TRUE(silent.send(RawConnection::encode(hello()).substr(0, 9)));
  EXPECT_TRUE(silent.is_closed());
  impatient.expect_work();
}

TEST_F(LyingInitiator, FramesOfTheFutureAreIgnored) {
  Session session = greet();
  ASSERT_TRUE(session.connection.send(std::string("\x06\0\0\0\xba\x3e\x03xyz", 10)));  // field 999
  proto::Frame beat;
  beat.mutable_heartbeat()->set_number(41);
  ASSERT_TRUE(session.connection.send_frame(beat));
  EXPECT_EQ(session.connection.receive_frame(proto::Frame::kHeartbeatEcho).heartbeat_echo().number(), 41u);
}

TEST_F(LyingInitiator, LanesThatNobodyOffered) {
  const Session session = greet();
  const auto closed = [&](const LanePreface& preface) {
    RawConnection lane = RawConnection::dial(honest_.owner().address());
    EXPECT_TRUE(lane.send(encode_lane_preface(preface)));
    return lane.is_closed();
  };
  EXPECT_TRUE(closed({session.welcome.session_id(), std::string(16, 'x'), 1}));
  EXPECT_TRUE(closed({session.welcome.session_id() + 1, session.welcome.lane_tokens(0), 1}));
  RawConnection lane = open_lane(session);  // the token's one use
  ASSERT_TRUE(lane.send(lane_frame(header(tcp::FrameType::read), span_table(honest_.region().id(), 0, 10))));
  EXPECT_EQ(lane.receive(tcp::Header::kBytes + 10).size(), tcp::Header::kBytes + 10);
  EXPECT_TRUE(closed({session.welcome.session_id(), session.welcome.lane_tokens(0), 2}));
}

TEST_F(LyingInitiator, LaneFramesThatLie) {
  const uint64_t id = honest_.region().id();
  using enum tcp::FrameType;
  expect_lane_ends(std::string(64, 'x'));
  expect_lane_ends(lane_frame(header(write, tcp::kMaxPayload + 1), span_table(id, 0, 100)));
  expect_lane_ends(lane_frame(header(write, 100), span_table(id, 0, 101)) + std::string(101, 'x'));
  expect_lane_ends(lane_frame(header(write, 100), ""));
  expect_lane_ends(lane_frame(header(write, 100), "short"));
  expect_lane_ends(lane_frame(header(read, 100), span_table(id, 0, 100)));
  expect_lane_ends(lane_frame(header(read), span_table(id, 0, 0)));
  expect_lane_ends(lane_frame(header(write_reply), ""));
  expect_lane_ends(lane_frame(header(read_reply, 10), ""));
  std::string huge_table;
  tcp::Header lying = header(read);
  lying.table_bytes = UINT32_MAX;
  tcp::encode_header(lying, huge_table);
  expect_lane_ends(huge_table);
  std::string many;
  ByteWriter writer(many);
  writer.put(id);
  writer.put(UINT32_MAX);
  writer.put(uint32_t{1});
  expect_lane_ends(lane_frame(header(read), many));
  // More bytes than a frame may carry, by spans that are each fine.
  std::string sum;
  ByteWriter adder(sum);
  adder.put(id);
  adder.put(uint32_t{tcp::kMaxSpans});
  adder.put(uint32_t{1u << 20});
  for (size_t i = 0; i < tcp::kMaxSpans; ++i) adder.put(uint64_t{0});
  expect_lane_ends(lane_frame(header(read), sum));
}

TEST_F(LyingInitiator, SpansThatAreNotOpenToItAreRefusedAndTheLaneGoesOn) {
  std::vector<std::byte> secret(1000, std::byte{9});
  const Region closed = must(honest_.owner().register_memory(secret.data(), 1000, MemoryKind::host, kPrivate));
  const Session session = greet();
  RawConnection lane = open_lane(session);
  const auto answer = [&](tcp::FrameType type, const std::string& table, const std::string& payload) {
    EXPECT_TRUE(lane.send(lane_frame(header(type, payload.size()), table) + payload));
    const std::string head = lane.receive(tcp::Header::kBytes);
    const auto decoded = tcp::decode_header(as_bytes(head));
    EXPECT_TRUE(decoded.ok());
    if (!decoded.ok()) return ErrorCode::internal;
    lane.receive(decoded->table_bytes + decoded->payload_bytes);
    return static_cast<ErrorCode>(decoded->code);
  };
  using enum tcp::FrameType;
  const uint64_t id = honest_.region().id();
  const std::string ten(10, 'x');
  const std::vector<std::byte> before = honest_.theirs();
  EXPECT_EQ(answer(read, span_table(closed.id(), 0, 10), ""), ErrorCode::permission_denied);
  EXPECT_EQ(answer(write, span_table(closed.id(), 0, 10), ten), ErrorCode::permission_denied);
  EXPECT_EQ(answer(read, span_table(id + 1000, 0, 10), ""), ErrorCode::not_found);
  EXPECT_EQ(answer(write, span_table(id, Bystanders::kBytes - 9, 10), ten), ErrorCode::invalid_argument);
  EXPECT_EQ(answer(write, span_table(id, UINT64_MAX - 4, 10), ten), ErrorCode::invalid_argument);
  // One bad span among good ones: nothing of the frame is applied.
  EXPECT_EQ(answer(write, span_table(id, 0, 10) + span_table(id + 1000, 0, 10), ten + ten), ErrorCode::not_found);
  EXPECT_TRUE(honest_.theirs() == before);
  EXPECT_EQ(answer(write, span_table(id, 3, 10), ten), ErrorCode());
  EXPECT_EQ(honest_.theirs()[3], std::byte{'x'});
  EXPECT_TRUE(secret == std::vector<std::byte>(1000, std::byte{9}));
}

// Half of a write, then the connection is cut, or nothing more comes: the honest ones are not delayed, unregister is
// not.
TEST_F(LyingInitiator, AWriteThatNeverEndsHoldsUpNobody) {
  const Session session = greet();
  RawConnection lane = open_lane(session);
  ASSERT_TRUE(
      lane.send(lane_frame(header(tcp::FrameType::write, 100000), span_table(honest_.region().id(), 0, 100000)) +
                std::string(50000, 'h')));
  EXPECT_LT(honest_.longest_wait(50), Bystanders::kBearable);
  std::vector<std::byte> more(100000);
  Region region = must(honest_.owner().register_memory(more.data(), more.size(), MemoryKind::host, kRemoteReadWrite));
  RawConnection second = open_lane(session, 2);
  ASSERT_TRUE(second.send(lane_frame(header(tcp::FrameType::write, 100000), span_table(region.id(), 0, 100000)) +
                          std::string(50000, 'h')));
  EXPECT_TRUE(eventually([&] { return peek(&more[49999]) == std::byte{'h'}; }));
  const Stopwatch watch;
  EXPECT_TRUE(region.unregister(seconds(30)).ok());
  EXPECT_LT(watch.elapsed(), seconds(1));
  second.send(std::string(50000, 'h'));
  EXPECT_EQ(second.receive(tcp::Header::kBytes).size(), tcp::Header::kBytes);  // not_found
  EXPECT_EQ(more[50000], std::byte{0});
}

// A reader that asks for much and takes nothing: the owner's memory and its other peers are untouched (I6, I7).
TEST_F(LyingInitiator, AReaderThatNeverReadsHoldsUpNobody) {
  const Session session = greet();
  RawConnection lane = open_lane(session);
  std::string asks;
  for (int i = 0; i < 2000; ++i)
    asks += lane_frame(header(tcp::FrameType::read), span_table(honest_.region().id(), 0, Bystanders::kBytes));
  lane.send(asks.substr(0, size_t{64} << 10));
  EXPECT_LT(honest_.longest_wait(50), Bystanders::kBearable);
  honest_.expect_work();
}

TEST_F(LyingInitiator, MoreLanesThanASessionMayHave) {
  Session session = greet();
  std::vector<RawConnection> lanes;
  size_t tokens = 0;
  for (int round = 0; round < 20; ++round) {
    proto::Frame wanted;
    wanted.mutable_lane_tokens_wanted();
    ASSERT_TRUE(session.connection.send_frame(wanted));
    const proto::Frame answer = session.connection.receive_frame(proto::Frame::kLaneTokens);
    for (const std::string& token : answer.lane_tokens().tokens()) {
      lanes.push_back(RawConnection::dial(honest_.owner().address()));
      lanes.back().send(encode_lane_preface({session.welcome.session_id(), token, static_cast<uint32_t>(++tokens)}));
    }
  }
  EXPECT_TRUE(lanes.back().is_closed());
  honest_.expect_work();
}

// Fences, notifications and attaches without end.
TEST_F(LyingInitiator, FloodsOfSmallFrames) {
  Session session = greet();
  std::string flood;
  for (uint32_t i = 0; i < 5000; ++i) {
    proto::Frame fence;
    fence.mutable_fence()->set_number(i);
    fence.mutable_fence()->set_lane_id(i);
    proto::Frame attach;
    attach.mutable_local_attach()->set_slots_fd(i);
    flood += RawConnection::encode(fence) + RawConnection::encode(attach);
  }
  session.connection.send(flood);
  EXPECT_LT(honest_.longest_wait(50), Bystanders::kBearable);
  honest_.expect_work();
}

}  // namespace
}  // namespace kvferry::test
