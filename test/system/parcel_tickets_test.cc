#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/fabric/local/process.h"
#include "engine/parcel.h"
#include "engine/parcel/selection.h"
#include "test/support/engines.h"
#include "test/support/raw_peer.h"

// What a ticket opens: the blocks of its parcel, to the reader whose claim was granted, for as long as the lease.
// Spoken by hand, so that the reader can ask for more.

namespace kvferry::test {
namespace {

using std::chrono::seconds;

constexpr uint32_t kBlocks = 8;
constexpr uint32_t kBlockTokens = 16;
constexpr size_t kPage = size_t{2} * 2 * 8 * 2 * kBlockTokens;  // K and V, two heads of eight elements of two bytes
constexpr size_t kCacheBytes = kBlocks * kPage;

struct Reply {
  ErrorCode code = ErrorCode::internal;  // of a refusal
  bool granted = false;
  std::string bytes;
  bool valid = false;
};

// A session and a lane of one reader.
class Reader {
 public:
  Reader(const std::string& address, const std::string& name, uint64_t incarnation)
      : session_(RawConnection::dial(address)), lane_(RawConnection::dial(address)) {
    proto::Frame frame = hello(name);
    frame.mutable_hello()->set_incarnation(incarnation);
    EXPECT_TRUE(session_.send(encode_session_preface() + RawConnection::encode(frame)));
    const proto::Welcome welcome = session_.receive_frame(proto::Frame::kWelcome).welcome();
    EXPECT_TRUE(lane_.send(encode_lane_preface({welcome.session_id(), welcome.lane_tokens(0), 1})));
  }

  Reply fetch(uint64_t number, const std::string& group, uint32_t end_token) {
    Selection selection;
    SelectionPart part;
    part.head_count = 2;
    part.end_token = end_token;
    part.chunk_tokens = kBlockTokens;
    part.layers = {{0, 1, 1}};
    selection.parts = {part};
    proto::Claim claim;
    claim.set_number(number);
    claim.set_transfer_id("t");
    claim.mutable_group()->set_instance_id(group);
    claim.mutable_group()->set_tp_size(1);
    claim.mutable_group()->set_pp_size(1);
    claim.set_fingerprint("model");
    claim.set_remaining_ms(30000);
    claim.set_selection(encode(selection));
    tcp::Header header;
    header.type = tcp::FrameType::fetch;
    header.op = ++op_;
    EXPECT_TRUE(lane_.send(lane_frame(header, claim.SerializeAsString())));
    return collect();
  }

  ErrorCode read_region(RegionId region) {
    tcp::Header header;
    header.type = tcp::FrameType::read;
    header.op = ++op_;
    EXPECT_TRUE(lane_.send(lane_frame(header, span_table(region, 0, 64))));
    const auto answer = tcp::decode_header(as_bytes(lane_.receive(tcp::Header::kBytes)));
    if (!answer.ok()) return ErrorCode::internal;
    static_cast<void>(lane_.receive(answer->table_bytes));  // why, in words
    return tcp::code_of(*answer);
  }

 private:
  Reply collect() {
    Reply reply;
    while (true) {
      const std::string raw = lane_.receive(tcp::Header::kBytes);
      const auto header = raw.size() == tcp::Header::kBytes ? tcp::decode_header(as_bytes(raw)) : Error{};
      if (!header.ok()) return reply;
      const std::string table = lane_.receive(header->table_bytes);
      reply.bytes += lane_.receive(header->payload_bytes);
      if (header->code != 0) return reply.code = tcp::code_of(*header), reply;
      if (header->type == tcp::FrameType::fetch_head) reply.granted = true;
      if (header->type != tcp::FrameType::fetch_end) continue;
      proto::Verdict verdict;
      reply.valid = verdict.ParseFromString(table) && verdict.code() == 0;
      return reply;
    }
  }
  RawConnection session_;
  RawConnection lane_;
  uint64_t op_ = 0;
};

class ParcelTickets : public ::testing::Test {
 protected:
  ParcelTickets() : cache_(pattern(kCacheBytes, 3)) {
    EngineConfig config;
    config.engine_id = "owner";
    config.fabrics = {"tcp"};
    config.strict = true;
    config.missed_heartbeats = 60;  // readers by hand send none
    config.logger = make_null_logger();
    engine_ = must(Engine::create(config));
    region_ = must(engine_->register_memory(cache_.data(), kCacheBytes, MemoryKind::host, kPrivate));
    parcels_.emplace(*engine_);
    KvLayout layout;
    layout.layers_total = 1;
    KvGroup group;
    group.block_tokens = kBlockTokens;
    group.block_count = kBlocks;
    group.heads_total = group.heads_local = 2;
    group.head_size_k = group.head_size_v = 8;
    group.element_bits = 16;
    layout.groups = {group};
    layout.layers = {dense_layer(0, 0, group, PageShape::head_major, KvOrder::in_block, region_.id(), 0)};
    EXPECT_TRUE(parcels_->set_cache("instance", layout).ok());
  }
  void publish(Duration lease = seconds(60)) {
    ParcelSpec spec;
    spec.transfer_id = "t";
    spec.tokens = 2 * kBlockTokens;
    spec.blocks = {{0, {5, 2}}};
    spec.fingerprint = "model";
    spec.lease = lease;
    ASSERT_TRUE(parcels_->publish(std::move(spec)).ok());
  }
  Reader reader(const std::string& name, uint64_t incarnation = 7) {
    return Reader(engine_->address(), name, incarnation);
  }

  std::vector<std::byte> cache_;
  std::unique_ptr<Engine> engine_;
  Region region_;
  std::optional<Parcels> parcels_;
};

TEST_F(ParcelTickets, OpenTheBlocksOfTheirParcelAndNothingElse) {
  publish();
  Reader honest = reader("honest");
  const Reply all = honest.fetch(1, "g", 2 * kBlockTokens);
  ASSERT_TRUE(all.granted) << to_string(all.code);
  EXPECT_TRUE(all.valid);
  EXPECT_EQ(all.bytes.size(), 2 * kPage);
  // The same bytes, in whatever order the selection has them, and none of another block's.
  std::string ours = all.bytes;
  std::string theirs(reinterpret_cast<const char*>(cache_.data()) + 5 * kPage, kPage);
  theirs.append(reinterpret_cast<const char*>(cache_.data()) + 2 * kPage, kPage);
  std::sort(ours.begin(), ours.end());
  std::sort(theirs.begin(), theirs.end());
  EXPECT_TRUE(ours == theirs);
  EXPECT_EQ(honest.read_region(region_.id()), ErrorCode::permission_denied);
  const Reply beyond = honest.fetch(2, "g", 3 * kBlockTokens);
  EXPECT_FALSE(beyond.granted);
  EXPECT_EQ(beyond.code, ErrorCode::invalid_argument);
  EXPECT_EQ(beyond.bytes, "");
}

TEST_F(ParcelTickets, OpenNothingToAnotherReader) {
  publish();
  Reader honest = reader("honest");
  ASSERT_TRUE(honest.fetch(1, "g", kBlockTokens).granted);
  Reader thief = reader("thief");
  const Reply stolen = thief.fetch(1, "others", kBlockTokens);  // the number of a claim that is not its own
  EXPECT_FALSE(stolen.granted);
  EXPECT_EQ(stolen.code, ErrorCode::conflict);
  EXPECT_EQ(stolen.bytes, "");
  EXPECT_TRUE(honest.fetch(2, "g", kBlockTokens).granted) << "and the thief costs it nothing";
}

TEST_F(ParcelTickets, OpenNothingBehindTheLease) {
  Reader honest = reader("honest");
  publish(seconds(2));
  ASSERT_TRUE(honest.fetch(1, "g", kBlockTokens).granted);
  ASSERT_TRUE(must(engine_->completion_fd()) >= 0);
  while (parcels_->status("t")) static_cast<void>(parcels_->take_released());
  for (const uint64_t number : {uint64_t{1}, uint64_t{2}}) {
    const Reply late = honest.fetch(number, "g", kBlockTokens);
    EXPECT_FALSE(late.granted);
    // A claim that ended with its parcel is told so once more, a new one finds nothing.
    EXPECT_EQ(late.code, number == 1 ? ErrorCode::stale : ErrorCode::gone);
    EXPECT_EQ(late.bytes, "");
  }
}

// The boundary of the fabric local is the uid, for root too.
TEST(LocalProcess, IsRefusedToAnotherUser) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to become somebody else";
  int ready[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const char ok = ::setuid(65534) == 0 ? 1 : 0;
    if (::write(ready[1], &ok, 1) != 1) ::_exit(1);
    while (true) ::pause();
  }
  char became = 0;
  EXPECT_EQ(::read(ready[0], &became, 1), 1);
  EXPECT_EQ(became, 1);
  const auto process = local::Process::open(static_cast<uint32_t>(child));
  EXPECT_TRUE(!process.ok() && process.error().code == ErrorCode::permission_denied);
  EXPECT_TRUE(local::Process::open(static_cast<uint32_t>(::getpid())).ok());
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ::close(ready[0]);
  ::close(ready[1]);
}

}  // namespace
}  // namespace kvferry::test
