#include <gmock/gmock.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <thread>

#include "test/support/eventually.h"
#include "test/support/lines.h"
#include "test/support/raw_peer.h"
#include "test/system/bystander.h"

// Whatever answers at a peer's address: another program, or an owner that lies. The transfer ends by its deadline with
// the reason, our memory outside of its spans is untouched, and transfers to others go on.

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint64_t kRegion = 77;

proto::Frame welcome() {
  proto::Frame frame;
  proto::Welcome& body = *frame.mutable_welcome();
  body.set_version(1);
  body.set_engine_id("fake");
  body.set_incarnation(3);
  body.set_session_id(5);
  for (int i = 0; i < 8; ++i) body.add_lane_tokens(std::string(16, static_cast<char>('a' + i)));
  return frame;
}

proto::Frame one_region(uint64_t length = uint64_t{1} << 20) {
  proto::Frame frame;
  proto::Region& region = *frame.mutable_regions()->add_added();
  region.set_id(kRegion);
  region.set_permissions(3);
  region.set_base(4096);
  region.set_length(length);
  region.set_word(UINT32_MAX);
  frame.mutable_regions()->set_version(1);
  frame.mutable_regions()->set_complete(true);
  frame.mutable_regions()->set_reset(true);
  return frame;
}

// Plays a peer on a port of its own, each connection in a thread: `play` is given its kind ('S', 'L' or 0 for none).
class Stage {
 public:
  using Play = std::function<void(RawConnection&)>;
  Stage(Play session, Play lane) : session_(std::move(session)), lane_(std::move(lane)) {
    acceptor_ = std::thread([this] {
      while (UniqueFd fd = listener_.accept()) {
        ends_.emplace_back(::dup(fd.get()));
        players_.emplace_back([this, connection = RawConnection(std::move(fd))]() mutable {
          play(connection);
          connection.shut();
        });
      }
    });
  }
  ~Stage() {
    listener_.stop();
    acceptor_.join();
    for (const UniqueFd& end : ends_) ::shutdown(end.get(), SHUT_RDWR);
    for (std::thread& player : players_) player.join();
  }
  const std::string& address() const { return listener_.address(); }

 private:
  void play(RawConnection& connection) {
    const std::string preface = connection.receive(Preface::kBytes);
    if (preface.size() < Preface::kBytes) return;
    if (preface[8] == 'S') return session_(connection);
    connection.receive(Preface::kLaneBytes);
    lane_(connection);
  }
  const Play session_;
  const Play lane_;
  RawListener listener_;
  std::vector<std::thread> players_;
  std::vector<UniqueFd> ends_;  // of the connections, to end them with
  std::thread acceptor_;
};

void say_welcome(RawConnection& connection) {
  connection.receive_frame(proto::Frame::kHello);
  connection.send_frame(welcome());
  connection.send_frame(one_region());
}

// Answers heartbeats until the other side leaves.
void honest_session(RawConnection& connection) {
  say_welcome(connection);
  while (true) {
    const proto::Frame beat = connection.receive_frame(proto::Frame::kHeartbeat);
    if (beat.body_case() != proto::Frame::kHeartbeat) return;
    proto::Frame echo;
    *echo.mutable_heartbeat_echo() = beat.heartbeat();
    connection.send_frame(echo);
  }
}

void hang_up(RawConnection&) {}

class LyingOwner : public ::testing::Test {
 protected:
  explicit LyingOwner(int missed_heartbeats = Bystanders::kPatient) : honest_({}, {}, missed_heartbeats, lines_) {}
  Outcome ask(const Stage& stage, Operation operation, Duration timeout = seconds(20)) {
    TransferRequest request;
    request.peer = must(honest_.initiator().peer(stage.address()));
    request.operation = operation;
    request.pairs = {{honest_.ours().data() + 1000, kRegion, 0, 5000}};
    request.timeout = timeout;
    const std::vector<std::byte> before = honest_.ours();
    const Stopwatch watch;
    const Outcome outcome = honest_.initiator().transfer(request);
    EXPECT_LT(watch.elapsed(), timeout + seconds(2));
    EXPECT_TRUE(std::equal(before.begin(), before.begin() + 1000, honest_.ours().begin()));
    EXPECT_TRUE(std::equal(before.begin() + 6000, before.end(), honest_.ours().begin() + 6000));
    return outcome;
  }
  void expect_failure(const Stage& stage, ErrorCode code, const std::string& words,
                      Operation operation = Operation::read, Duration timeout = seconds(20)) {
    const Outcome outcome = ask(stage, operation, timeout);
    ASSERT_FALSE(outcome.status.ok());
    EXPECT_EQ(outcome.status.error().code, code) << outcome.status.error().to_string();
    EXPECT_THAT(outcome.status.error().to_string(), ::testing::HasSubstr(words));
    EXPECT_THAT(outcome.status.error().to_string(), ::testing::HasSubstr(stage.address()));
    honest_.expect_work();
  }
  // A session whose first frame is `frames`.
  void expect_session_fails(const std::string& bytes, ErrorCode code, const std::string& words) {
    const Stage stage(
        [&](RawConnection& connection) {
          connection.receive_frame(proto::Frame::kHello);
          connection.send(bytes);
          static_cast<void>(connection.is_closed());
        },
        hang_up);
    expect_failure(stage, code, words);
  }
  // A lane that answers every request by `answer`.
  void expect_lane_fails(const std::function<std::string(const tcp::Header&)>& answer, ErrorCode code,
                         const std::string& words, Operation operation = Operation::read) {
    const Stage stage(honest_session, [&](RawConnection& lane) {
      while (true) {
        const auto header = tcp::decode_header(as_bytes(lane.receive(tcp::Header::kBytes)));
        if (!header.ok()) return;
        lane.receive(header->table_bytes + header->payload_bytes);
        lane.send(answer(*header));
      }
    });
    expect_failure(stage, code, words, operation);
  }
  static std::string reply(tcp::FrameType type, uint64_t op, uint64_t payload, uint16_t code = 0,
                           const std::string& text = "") {
    tcp::Header header;
    header.type = type;
    header.op = op;
    header.payload_bytes = payload;
    header.code = code;
    return lane_frame(header, text);
  }

  const std::shared_ptr<Lines> lines_ = std::make_shared<Lines>();
  Bystanders honest_;
};

TEST_F(LyingOwner, OtherPrograms) {
  expect_session_fails("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", ErrorCode::protocol, "session frame");
  expect_session_fails("\x15\x03\x01", ErrorCode::unavailable, "");
}

TEST_F(LyingOwner, OneThatHangsUp) {
  const Stage stage(hang_up, hang_up);
  expect_failure(stage, ErrorCode::unavailable, "closed the connection during hello");
}

TEST_F(LyingOwner, OneThatSaysNothing) {
  const Stage stage([](RawConnection& connection) { static_cast<void>(connection.is_closed()); }, hang_up);
  expect_failure(stage, ErrorCode::deadline_exceeded, "", Operation::read, milliseconds(500));
}

TEST_F(LyingOwner, SessionsThatBreakTheRules) {
  std::string oversized;
  ByteWriter(oversized).put(uint32_t{0x7fffffff});
  expect_session_fails(oversized, ErrorCode::protocol, "over the limit");
  proto::Frame echo;
  echo.mutable_heartbeat_echo();
  expect_session_fails(RawConnection::encode(echo), ErrorCode::protocol, "no welcome");
  proto::Frame nameless = welcome();
  nameless.mutable_welcome()->clear_engine_id();
  expect_session_fails(RawConnection::encode(nameless), ErrorCode::protocol, "engine id");
  proto::Frame future = welcome();
  future.mutable_welcome()->set_version(9);
  expect_session_fails(RawConnection::encode(future), ErrorCode::unsupported, "version 9");
  expect_session_fails(RawConnection::encode(welcome()) + RawConnection::encode(welcome()), ErrorCode::protocol,
                       "welcome came twice");
  proto::Frame refusal;
  refusal.mutable_refusal()->set_code(static_cast<uint32_t>(ErrorCode::permission_denied));
  refusal.mutable_refusal()->set_message("not you");
  expect_session_fails(RawConnection::encode(refusal), ErrorCode::permission_denied, "not you");
}

TEST_F(LyingOwner, RegionTablesThatAreNone) {
  expect_session_fails(RawConnection::encode(welcome()) + RawConnection::encode(one_region(0)), ErrorCode::protocol,
                       "malformed region");
  proto::Frame wrapping = one_region();
  wrapping.mutable_regions()->mutable_added(0)->set_base(UINT64_MAX - 5);
  expect_session_fails(RawConnection::encode(welcome()) + RawConnection::encode(wrapping), ErrorCode::protocol,
                       "malformed region");
  proto::Frame kind = one_region();
  kind.mutable_regions()->mutable_added(0)->set_kind(200);
  expect_session_fails(RawConnection::encode(welcome()) + RawConnection::encode(kind), ErrorCode::protocol,
                       "malformed region");
}

struct TableChange {
  bool reset = false;
  std::vector<uint64_t> removed, added;
};

std::string encode(const std::vector<TableChange>& changes) {
  std::string out;
  uint64_t version = 0;
  for (const TableChange& change : changes) {
    proto::Frame frame;
    proto::RegionDelta& delta = *frame.mutable_regions();
    for (const uint64_t id : change.added) {
      *delta.add_added() = one_region().regions().added(0);
      delta.mutable_added(delta.added_size() - 1)->set_id(id);
    }
    for (const uint64_t id : change.removed) delta.add_removed(id);
    delta.set_reset(change.reset);
    delta.set_version(++version);
    delta.set_complete(true);
    out += RawConnection::encode(frame);
  }
  return out;
}

// One table is made of them, as it would be of one after the other.
TEST_F(LyingOwner, ChangesOfRegionsThatComeInOneGo) {
  using Ids = std::vector<uint64_t>;
  const std::pair<std::vector<TableChange>, Ids> cases[] = {
      {{{true, {}, {1, 2}}, {false, {1}, {3}}, {false, {}, {4}}, {false, {4}, {5}}}, {2, 3, 5}},
      {{{true, {}, {1, 2}}, {false, {2}, {}}, {true, {}, {7}}, {false, {}, {8}}}, {7, 8}},
      {{{true, {}, {1}}, {false, {1}, {}}}, {}},
  };
  for (const auto& [changes, wanted] : cases) {
    const Stage stage(
        [changes = encode(changes)](RawConnection& connection) {
          connection.receive_frame(proto::Frame::kHello);
          connection.send(RawConnection::encode(welcome()) + changes);
          static_cast<void>(connection.is_closed());
        },
        hang_up);
    const PeerRef peer = must(honest_.initiator().peer(stage.address()));
    ASSERT_TRUE(peer.connect(seconds(20)).ok());
    Ids known;
    for (const RegionInfo& region : peer.regions()) known.push_back(region.id);
    EXPECT_EQ(known, wanted);
  }
}

// A million of them, again and again.
TEST_F(LyingOwner, ARegionTableWithoutEnd) {
  const Stage stage(
      [](RawConnection& connection) {
        connection.receive_frame(proto::Frame::kHello);
        connection.send_frame(welcome());
        proto::Frame many = one_region();
        many.mutable_regions()->set_complete(false);
        many.mutable_regions()->set_reset(false);
        while (many.regions().added_size() < 10000) *many.mutable_regions()->add_added() = many.regions().added(0);
        for (int i = 0; i < 100 && connection.send_frame(many); ++i) {
        }
      },
      hang_up);
  expect_failure(stage, ErrorCode::resource_exhausted, "max_regions");
  const Bystanders::Service service = honest_.service_during([&] {
    for (int i = 0; i < 4; ++i) EXPECT_FALSE(ask(stage, Operation::read).status.ok());
  });
  service.print("a million regions");
  EXPECT_LT(service.p99, Bystanders::kUsual);
  EXPECT_LT(service.longest, Bystanders::kBearable);
  const auto named = [](const std::string& text, const std::string& words) { return text.find(words) != text.npos; };
  EXPECT_TRUE(eventually([&] {
    return named(honest_.initiator().metrics(), "kvferry_complaints_total{cause=\"resource_exhausted\"} 5");
  }));
  EXPECT_TRUE(eventually([&] { return named(lines_->text(), "\"fake\" (" + stage.address() + "): "); }))
      << lines_->text();
  EXPECT_THAT(lines_->text(), ::testing::HasSubstr("over max_regions (65536)"));
}

// As many regions as are allowed would take a gigabyte by their keys.
TEST_F(LyingOwner, KeysWithoutEnd) {
  const Stage stage(
      [](RawConnection& connection) {
        connection.receive_frame(proto::Frame::kHello);
        connection.send_frame(welcome());
        proto::Frame many = one_region();
        many.mutable_regions()->set_complete(false);
        many.mutable_regions()->set_reset(false);
        proto::Region& region = *many.mutable_regions()->mutable_added(0);
        for (int i = 0; i < 20; ++i) {
          region.add_keys()->set_name("ofi#" + std::to_string(i));
          region.mutable_keys(i)->set_address(std::string(1024, 'k'));
        }
        while (many.regions().added_size() < 40) *many.mutable_regions()->add_added() = many.regions().added(0);
        for (int i = 0; i < 200 && connection.send_frame(many); ++i) {
        }
      },
      hang_up);
  expect_failure(stage, ErrorCode::resource_exhausted, "keys of the peer's region table are over 64 MiB");
}

// As many as are allowed, and then changes without end, each of them short, and an answer to nothing behind each.
TEST_F(LyingOwner, ARegionTableThatNeverComesToRest) {
  std::atomic<int> changes{0};
  std::atomic<bool> leave{false};
  const Stage stage(
      [&](RawConnection& connection) {
        connection.receive_frame(proto::Frame::kHello);
        connection.send_frame(welcome());
        proto::Frame many = one_region();
        many.mutable_regions()->set_complete(false);
        while (many.regions().added_size() < 8000) {
          proto::Region& next = *many.mutable_regions()->add_added();
          next = many.regions().added(0);
        }
        uint64_t id = 1000;
        for (int i = 0; i < 8; ++i) {
          for (proto::Region& region : *many.mutable_regions()->mutable_added()) region.set_id(++id);
          many.mutable_regions()->set_complete(i == 7);
          many.mutable_regions()->set_reset(i == 0);
          connection.send_frame(many);
        }
        std::string burst;
        for (int i = 0; i < 1000; ++i) {
          proto::Frame change = one_region();
          change.mutable_regions()->mutable_added(0)->set_id(++id);
          change.mutable_regions()->add_removed(id - 1);
          change.mutable_regions()->set_reset(false);
          burst += RawConnection::encode(change);
          proto::Frame echo;
          echo.mutable_heartbeat_echo()->set_number(UINT64_MAX);
          burst += RawConnection::encode(echo);
        }
        while (!leave.load() && connection.send(burst)) ++changes;
      },
      hang_up);
  static_cast<void>(ask(stage, Operation::read, seconds(2)));
  const Bystanders::Service service =
      honest_.service_during([&] { EXPECT_TRUE(eventually([&] { return changes > 3; })); });
  service.print("regions that change all the time");
  leave.store(true);
  // A table of so many takes a sanitizer some twenty times as long, and each read may wait for two.
  EXPECT_LT(service.p99, kSanitized ? Bystanders::kBearable : Bystanders::kUsual);
  EXPECT_LT(service.longest, Bystanders::kBearable);
}

TEST_F(LyingOwner, ASessionThatDiesBehindTheWelcome) {
  const Stage stage(say_welcome, hang_up);
  const Outcome outcome = ask(stage, Operation::read);
  EXPECT_FALSE(outcome.status.ok());
}

class SilentOwner : public LyingOwner {
 protected:
  SilentOwner() : LyingOwner(10) {}
};

TEST_F(SilentOwner, EndsTheSessionByTheHeartbeats) {
  const Stage stage(
      [](RawConnection& connection) {
        say_welcome(connection);
        static_cast<void>(connection.is_closed());
      },
      [](RawConnection& lane) { static_cast<void>(lane.is_closed()); });
  expect_failure(stage, ErrorCode::peer_lost, "no heartbeat for");
}

TEST_F(LyingOwner, LanesThatHangUpAreTriedThriceThenTheTransferFails) {
  const Stage stage(honest_session, hang_up);
  expect_failure(stage, ErrorCode::peer_lost, "");
}

TEST_F(LyingOwner, LaneAnswersThatLie) {
  using enum tcp::FrameType;
  const auto garbage = [](const tcp::Header&) { return std::string(100, 'g'); };
  expect_lane_fails(garbage, ErrorCode::protocol, "wrong magic");
  expect_lane_fails([](const tcp::Header& asked) { return reply(read_reply, asked.op + 9, 5000); }, ErrorCode::protocol,
                    "answer to nothing");
  expect_lane_fails([](const tcp::Header& asked) { return reply(write_reply, asked.op, 0); }, ErrorCode::protocol,
                    "wrong type");
  expect_lane_fails([](const tcp::Header& asked) { return reply(read_reply, asked.op, 5001) + std::string(5001, 'x'); },
                    ErrorCode::protocol, "wrong length");
  expect_lane_fails([](const tcp::Header& asked) { return reply(read_reply, asked.op, 0); }, ErrorCode::protocol,
                    "wrong length");
  expect_lane_fails([](const tcp::Header& asked) { return reply(write, asked.op, 0); }, ErrorCode::protocol, "");
  expect_lane_fails([](const tcp::Header& asked) { return reply(write_reply, asked.op, 10) + std::string(10, 'x'); },
                    ErrorCode::protocol, "wrong length", Operation::write);
}

TEST_F(LyingOwner, RefusalsAreQuoted) {
  using enum tcp::FrameType;
  expect_lane_fails([](const tcp::Header& asked) { return reply(read_reply, asked.op, 0, 3, "because I say so"); },
                    ErrorCode::permission_denied, "because I say so");
  // A code that this build does not know.
  expect_lane_fails([](const tcp::Header& asked) { return reply(write_reply, asked.op, 0, 60000, "what"); },
                    ErrorCode::internal, "what", Operation::write);
}

TEST_F(LyingOwner, AnAnswerThatStopsHalfWay) {
  const Stage stage(honest_session, [](RawConnection& lane) {
    const auto header = tcp::decode_header(as_bytes(lane.receive(tcp::Header::kBytes)));
    if (!header.ok()) return;
    lane.send(reply(tcp::FrameType::read_reply, header->op, 5000) + std::string(2000, 'x'));
    static_cast<void>(lane.is_closed());
  });
  expect_failure(stage, ErrorCode::deadline_exceeded, "0 of 1 spans done", Operation::read, milliseconds(600));
}

}  // namespace
}  // namespace kvferry::test
