#include <gtest/gtest.h>

#include "engine/fabric/tcp/owner.h"
#include "engine/session/frames.h"
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

// Whoever floods is given up first: those who hold little go on, and what a session held is free when it ends.
TEST(FramesTest, ThatAllHoldTooMuchOfEndTheConnectionsThatHoldMost) {
  const auto room = std::make_shared<FrameRoom>(FrameRoom{100'000, 1000, 0});
  Frames::Limits limits;
  limits.room = room;
  proto::Frame large;
  large.mutable_notify()->set_payload(std::string(30'000, 'x'));
  {
    Recorder heard;
    auto [stream, pipe] = memory_stream();
    Frames frames(std::move(stream), heard, limits, {});
    Recorder flooded;
    auto [other_stream, other_pipe] = memory_stream();
    other_pipe->room = 0;
    Frames other(std::move(other_stream), flooded, limits, {});
    for (int i = 0; i < 10 && !flooded.lost; ++i) other.send(large);
    ASSERT_TRUE(flooded.lost);
    EXPECT_EQ(flooded.lost->code, ErrorCode::resource_exhausted);
    EXPECT_NE(flooded.lost->message.find("max_session_bytes (100000)"), std::string::npos);
    EXPECT_GT(room->held, 100'000u);
    frames.send(beat(1));
    pipe->input = RawConnection::encode(beat(2));
    pipe->pump();
    EXPECT_FALSE(heard.lost);
    EXPECT_EQ(heard.numbers, std::vector<uint64_t>{2});
    // The half of a frame counts too.
    pipe->input = RawConnection::encode(large).substr(0, 20'000);
    pipe->pump();
    ASSERT_TRUE(heard.lost);
    EXPECT_EQ(heard.lost->code, ErrorCode::resource_exhausted);
  }
  EXPECT_EQ(room->held, 0u);
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

}  // namespace
}  // namespace kvferry::test
