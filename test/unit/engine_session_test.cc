#include <gtest/gtest.h>

#include "engine/fabric/tcp/owner.h"
#include "engine/io/address.h"
#include "engine/session/frames.h"
#include "engine/session/messages.h"
#include "proto/control.pb.h"
#include "test/support/manual_loop.h"
#include "test/support/raw_peer.h"

// Frames and lanes over streams in memory.

namespace kvferry::test {
namespace {

class Recorder final : public FramesHandler {
 public:
  void on_frame(const proto::Frame& frame) override { numbers.push_back(frame.heartbeat().number()); }
  void on_frames_lost(Error error) override { lost = std::move(error); }
  void on_frames_drained() override { ++drained; }
  std::vector<uint64_t> numbers;
  std::optional<Error> lost;
  int drained = 0;
};

proto::Frame beat(uint64_t number) {
  proto::Frame frame;
  frame.mutable_heartbeat()->set_number(number);
  return frame;
}

TEST(FramesTest, ArriveHoweverTheyAreCut) {
  std::string bytes;
  for (uint64_t i = 1; i <= 20; ++i) bytes += RawConnection::encode(beat(i));
  for (const size_t at_once : {size_t{1}, size_t{3}, size_t{7}, SIZE_MAX}) {
    Recorder recorder;
    auto [stream, pipe] = memory_stream(bytes);
    pipe->read_at_once = at_once;
    Frames frames(std::move(stream), recorder, {}, {});
    pipe->pump();
    ASSERT_EQ(recorder.numbers.size(), 20u);
    EXPECT_EQ(recorder.numbers.back(), 20u);
    EXPECT_FALSE(recorder.lost);
  }
}

TEST(FramesTest, OverTheLimitEndTheConnection) {
  Recorder recorder;
  std::string bytes;
  ByteWriter(bytes).put(uint32_t{1001});
  auto [stream, pipe] = memory_stream(bytes);
  Frames frames(std::move(stream), recorder, {1000, 10000, {}}, {});
  pipe->pump();
  ASSERT_TRUE(recorder.lost);
  EXPECT_EQ(recorder.lost->code, ErrorCode::protocol);
}

TEST(FramesTest, ThatNobodyReadsEndTheConnection) {
  Recorder recorder;
  auto [stream, pipe] = memory_stream();
  pipe->room = 0;
  Frames frames(std::move(stream), recorder, {1000, 2000, {}}, {});
  proto::Frame large;
  large.mutable_notify()->set_payload(std::string(900, 'x'));
  frames.send(large);
  frames.send(large);
  EXPECT_FALSE(recorder.lost);
  frames.send(large);
  ASSERT_TRUE(recorder.lost);
  EXPECT_EQ(recorder.lost->code, ErrorCode::resource_exhausted);
}

// Whoever floods is given up, and not whoever comes then: those who hold little go on, and what a session held is free
// when it ends.
TEST(FramesTest, ThatAllHoldTooMuchOfEndTheConnectionsThatHoldMost) {
  const auto room = std::make_shared<FrameRoom>(FrameRoom{150'000, 1000, 0});
  Frames::Limits limits;
  limits.room = room;
  proto::Frame large;
  large.mutable_notify()->set_payload(std::string(30'000, 'x'));
  {
    Recorder flooded;
    auto [greedy_stream, greedy_pipe] = memory_stream();
    greedy_pipe->room = 0;
    Frames greedy(std::move(greedy_stream), flooded, limits, {});
    for (int i = 0; i < 3; ++i) greedy.send(large);
    ASSERT_FALSE(flooded.lost) << "there is room yet";
    const size_t held = room->held;
    EXPECT_GT(held, 90'000u);
    // The half of a frame counts too, and goes over the limit.
    Recorder heard;
    auto [stream, pipe] = memory_stream();
    Frames frames(std::move(stream), heard, limits, {});
    std::vector<std::unique_ptr<Frames>> more;
    std::vector<std::unique_ptr<Recorder>> recorders;
    for (int i = 0; i < 10 && !flooded.lost; ++i) {
      recorders.push_back(std::make_unique<Recorder>());
      auto [other_stream, other_pipe] = memory_stream();
      more.push_back(std::make_unique<Frames>(std::move(other_stream), *recorders.back(), limits, ""));
      other_pipe->input = RawConnection::encode(large).substr(0, 12'000);
      other_pipe->pump();
    }
    ASSERT_TRUE(flooded.lost);
    EXPECT_EQ(flooded.lost->code, ErrorCode::resource_exhausted);
    EXPECT_NE(flooded.lost->message.find("max_session_bytes (150000)"), std::string::npos);
    EXPECT_LT(room->held, held) << "what it held is free";
    for (const auto& recorder : recorders) EXPECT_FALSE(recorder->lost);
    frames.send(beat(1));
    pipe->input = RawConnection::encode(beat(2));
    pipe->pump();
    EXPECT_FALSE(heard.lost);
    EXPECT_EQ(heard.numbers, std::vector<uint64_t>{2});
  }
  EXPECT_EQ(room->held, 0u);
  EXPECT_TRUE(room->members.empty());
}

// In the middle of what it handles.
TEST(FramesTest, ThatHoldMostMayBeThoseThatAreBeingHandled) {
  const auto room = std::make_shared<FrameRoom>(FrameRoom{40'000, 1000, 0});
  Frames::Limits limits;
  limits.room = room;
  proto::Frame large;
  large.mutable_notify()->set_payload(std::string(30'000, 'x'));
  struct Echoing final : FramesHandler {
    Frames* other = nullptr;
    const proto::Frame* answer = nullptr;
    int heard = 0;
    bool lost = false;
    void on_frame(const proto::Frame&) override {
      ++heard;
      other->send(*answer);
    }
    void on_frames_lost(Error) override { lost = true; }
  } first;
  Recorder second;
  auto [first_stream, first_pipe] = memory_stream();
  auto [second_stream, second_pipe] = memory_stream();
  second_pipe->room = 0;
  Frames frames(std::move(first_stream), first, limits, {});
  Frames other(std::move(second_stream), second, limits, {});
  first.other = &other;
  first.answer = &large;
  first_pipe->input = RawConnection::encode(large) + RawConnection::encode(beat(1)) + RawConnection::encode(beat(2));
  for (int i = 0; i < 10; ++i) first_pipe->pump();
  EXPECT_GT(first.heard, 0);
  EXPECT_TRUE(first.lost || second.lost);
  EXPECT_LE(room->held, 40'000u);
}

TEST(FramesTest, LargeOnesLeaveNoLargeBuffersBehind) {
  const auto room = std::make_shared<FrameRoom>();
  Frames::Limits limits;
  limits.room = room;
  Recorder recorder;
  auto [stream, pipe] = memory_stream();
  Frames frames(std::move(stream), recorder, limits, {});
  proto::Frame large;
  large.mutable_notify()->set_payload(std::string(900'000, 'x'));
  pipe->input = RawConnection::encode(large);
  pipe->pump();
  frames.send(large);
  frames.send(beat(1));
  EXPECT_LT(room->held, size_t{130} << 10);
}

// A line of protobuf's own for each would let anybody fill the disk.
TEST(FramesTest, BrokenOnesPutNothingOnStandardError) {
  proto::Frame named;
  named.mutable_notify()->set_name("NAME");
  std::string bytes = RawConnection::encode(named);
  bytes.replace(bytes.find("NAME"), 4, "\xff\xfe\xff\xfe");
  Recorder recorder;
  auto [stream, pipe] = memory_stream(bytes);
  ::testing::internal::CaptureStderr();
  Frames frames(std::move(stream), recorder, {}, {});
  pipe->pump();
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  ASSERT_TRUE(recorder.lost);
  EXPECT_EQ(recorder.lost->code, ErrorCode::protocol);
}

TEST(FramesTest, TellWhenWhatHadToWaitHasLeft) {
  Recorder recorder;
  auto [stream, pipe] = memory_stream();
  pipe->room = 5;
  Frames frames(std::move(stream), recorder, {}, "preface");
  frames.send(beat(1));
  pipe->pump();
  EXPECT_EQ(recorder.drained, 0);
  pipe->room = SIZE_MAX;
  pipe->pump();
  EXPECT_EQ(recorder.drained, 1);
  EXPECT_EQ(frames.queued_bytes(), 0u);
  EXPECT_EQ(pipe->output, "preface" + RawConnection::encode(beat(1)));
}

TEST(FramesTest, HoldWhatMayWaitUntilTheNextIsSentOrTheyAreFlushed) {
  Recorder recorder;
  auto [stream, pipe] = memory_stream();
  Frames frames(std::move(stream), recorder, {}, {});
  frames.hold(beat(1));
  frames.hold(beat(2));
  EXPECT_EQ(pipe->output, "");
  frames.send(beat(3));
  const std::string three =
      RawConnection::encode(beat(1)) + RawConnection::encode(beat(2)) + RawConnection::encode(beat(3));
  EXPECT_EQ(pipe->output, three);
  frames.hold(beat(4));
  EXPECT_EQ(pipe->output, three);
  frames.flush_held();
  EXPECT_EQ(pipe->output, three + RawConnection::encode(beat(4)));
  frames.hold(beat(5));
  frames.close(true);
  EXPECT_EQ(pipe->output, three + RawConnection::encode(beat(4)) + RawConnection::encode(beat(5)));
}

class Host final : public Guest {
 public:
  const std::string& engine_id() const override { return id; }
  uint64_t incarnation() const override { return 1; }
  bool still_welcome() override { return ++asked, welcome; }
  std::string id = "guest";
  bool welcome = true;
  int asked = 0;
};

class OwnerLaneTest : public ::testing::Test {
 protected:
  OwnerLaneTest() {
    MemoryKinds kinds;
    kinds.add(make_host_memory());
    registry_.emplace(std::move(kinds), *words_, 8, 1);
    region_ = registry_->add(memory_.data(), memory_.size(), MemoryKind::host, kRemoteReadWrite)->id;
    owner_.emplace(loop_, *registry_, staging_);
    auto [stream, pipe] = memory_stream();
    pipe_ = pipe;
    owner_->adopt(guest_, std::move(stream), 1);
  }
  ~OwnerLaneTest() override {
    owner_->drop_guest(guest_);
    loop_.run_deferred();
  }
  // A write of `bytes` bytes, of which `sent` are in the lane now.
  void send_write(uint32_t bytes, size_t sent) {
    tcp::Header header;
    header.type = tcp::FrameType::write;
    header.payload_bytes = bytes;
    pipe_->input += lane_frame(header, span_table(region_, 0, bytes)) + std::string(sent, 'w');
    pipe_->pump();
  }
  size_t written() const { return static_cast<size_t>(std::count(memory_.begin(), memory_.end(), std::byte{'w'})); }

  ManualLoop loop_;
  std::unique_ptr<GateWords> words_ = std::move(GateWords::create()).value();
  std::vector<std::byte> memory_ = std::vector<std::byte>(size_t{2} << 20);
  std::optional<Registry> registry_;
  Staging staging_{loop_, 1 << 20};
  std::optional<tcp::Owner> owner_;
  Host guest_;
  RegionId region_ = 0;
  std::shared_ptr<MemoryPipe> pipe_;
};

TEST_F(OwnerLaneTest, AsksBeforeEachSliceWhetherThePeerStillWantsIt) {
  send_write(2 << 20, 2 << 20);
  EXPECT_EQ(written(), size_t{2} << 20);
  EXPECT_GE(guest_.asked, 8);  // slices of 256 KiB
  EXPECT_EQ(pipe_->output.size(), tcp::Header::kBytes);
}

// I4: what lies in the socket of a lane that the peer has reset is not applied.
TEST_F(OwnerLaneTest, AppliesNothingOfATornLane) {
  pipe_->read_at_once = 100000;
  send_write(2 << 20, 150000);
  EXPECT_EQ(written(), 150000u);
  pipe_->torn = true;
  pipe_->input += std::string(1 << 20, 'w');
  pipe_->pump();
  EXPECT_EQ(written(), 150000u);
  EXPECT_TRUE(pipe_->was_reset);
}

TEST_F(OwnerLaneTest, AppliesNothingOnceTheSessionIsOver) {
  send_write(2 << 20, 150000);
  guest_.welcome = false;
  pipe_->input += std::string(1 << 20, 'w');
  pipe_->pump();
  EXPECT_EQ(written(), 150000u);
}

TEST_F(OwnerLaneTest, AppliesNothingBehindAFence) {
  send_write(2 << 20, 150000);
  owner_->close_lane(guest_, 1);
  pipe_->input += std::string(1 << 20, 'w');
  pipe_->pump();
  loop_.run_deferred();
  EXPECT_EQ(written(), 150000u);
  EXPECT_FALSE(pipe_->alive);
}

TEST_F(OwnerLaneTest, ThrowsAwayTheRestWhenTheRegionIsFencedAndSaysSo) {
  send_write(2 << 20, 150000);
  const auto region = std::move(registry_->begin_close(region_)).value();
  owner_->fence_region(*region);
  EXPECT_EQ(region->pins.load(), 0u);
  pipe_->input += std::string((2 << 20) - 150000, 'w');
  pipe_->pump();
  EXPECT_EQ(written(), 150000u);
  const auto header = tcp::decode_header(as_bytes(pipe_->output).first(tcp::Header::kBytes));
  ASSERT_TRUE(header.ok());
  EXPECT_EQ(tcp::code_of(*header), ErrorCode::not_found);
  EXPECT_TRUE(pipe_->alive);
  registry_->forget(*region);
}

// ---- what is kept of a peer's words (I6)

TEST(PeersWords, AreKeptUpToALength) {
  proto::Host host;
  host.set_boot_id(std::string(1'000'000, 'x'));
  EXPECT_EQ(host_from_proto(host).boot_id, "") << "no host's: there is no such one here";
  host.set_boot_id("5f4e7a30-7f7c-4a3c-a7a7-9b7f6a3f2c11");
  EXPECT_EQ(host_from_proto(host).boot_id, host.boot_id());
  proto::Region region;
  region.set_id(1);
  region.set_length(4096);
  region.set_word(kNoWord);
  region.add_keys()->set_name("ofi#1");
  region.mutable_keys(0)->set_address("key");
  EXPECT_TRUE(region_from_proto(region).ok());
  for (const size_t length : {size_t{0}, size_t{33}, size_t{1'000'000}}) {
    region.mutable_keys(0)->set_name(std::string(length, 'x'));
    EXPECT_FALSE(region_from_proto(region).ok()) << length;
  }
}

TEST(NetworkOf, IsTheHostAndOfIpv6Its64Bits) {
  EXPECT_EQ(network_of("10.0.0.1:7100"), "10.0.0.1");
  EXPECT_EQ(network_of("[2001:db8:1:2:3:4:5:6]:7100"), "2001:db8:1:2::/64");
  EXPECT_EQ(network_of("[2001:db8:1:2:ffff::1]:9"), "2001:db8:1:2::/64");
  EXPECT_NE(network_of("[2001:db8:1:3::1]:9"), "2001:db8:1:2::/64");
  EXPECT_EQ(network_of("[::ffff:10.0.0.1]:9"), "::ffff:10.0.0.1") << "an IPv4 address has no such network";
  EXPECT_EQ(network_of("[::1]:9"), "::1");
}

}  // namespace
}  // namespace kvferry::test
