#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "test/support/parcel_node.h"

// Reads that are taken up again by another session, which may bring another fabric or find another parcel.

namespace kvferry::test {
namespace {

using namespace std::chrono_literals;  // NOLINT(google-build-using-namespace)
using ::testing::HasSubstr;

constexpr auto kPublished = std::byte{0xAA};
constexpr auto kOther = std::byte{0xEE};
constexpr auto kBefore = std::byte{0x11};

class ParcelReconnect : public ::testing::Test {
 protected:
  ParcelReconnect() { scene_.hub = std::make_shared<loopback::Hub>(1s); }  // seconds for each read of a few spans

  void SetUp() override {
    NodeOptions options;
    options.name = "owner";
    options.limits.kept_verdicts = 1;
    options.limits.tombstones = 1;
    owner_.emplace(scene_, 0, options);
    options.name = "reader";
    reader_.emplace(scene_, 1, options);
    owner_->fill(kOther);
    reader_->fill(kBefore);
  }
  void let_hub_reach_owner(bool reach) {
    const Identity& owner = owner_->core().identity();
    if (reach)
      scene_.hub->add(owner.engine_id, owner.incarnation, *owner_->process->registry, *owner_->process->words);
    else
      scene_.hub->remove(owner.engine_id, owner.incarnation);
  }
  void publish(const std::string& id, std::vector<uint32_t> blocks, std::byte value, bool digest = false) {
    for (const uint32_t block : blocks) owner_->fill_block(block, value);
    ParcelSpec spec;
    spec.transfer_id = id;
    spec.tokens = blocks.size() * ParcelNode::kBlockTokens;
    spec.blocks = {{0, std::move(blocks)}};
    spec.fingerprint = "prompt";
    spec.digest = digest;
    const Status status = owner_->owner().publish(std::move(spec));
    ASSERT_TRUE(status.ok()) << status.error().to_string();
  }
  using Ending = std::shared_ptr<std::optional<ParcelOutcome>>;
  Ending read(ParcelNode& node, const std::string& id, const std::vector<uint32_t>& blocks) {
    return read(node, id, blocks, node.peer(*owner_));
  }
  static Ending read(ParcelNode& node, const std::string& id, const std::vector<uint32_t>& blocks,
                     EngineCore::PeerIndex owner) {
    ParcelRead asked;
    asked.transfer_id = id;
    asked.owners = {owner};
    asked.group_instance_id = node.name();
    asked.fingerprint = "prompt";
    asked.layout = std::make_shared<const KvLayout>(node.layout());
    asked.end_token = static_cast<uint32_t>(blocks.size()) * ParcelNode::kBlockTokens;
    asked.blocks = {{0, blocks}};
    asked.deadline = node.now() + 100s;
    auto ending = std::make_shared<std::optional<ParcelOutcome>>();
    node.reader().read(std::move(asked), [ending](const ParcelOutcome& outcome) { *ending = outcome; });
    return ending;
  }
  ParcelOutcome outcome_of(const Ending& ending) {
    EXPECT_TRUE(scene_.run_until(100s, [&] { return ending->has_value(); })) << "no outcome";
    return ending->value_or(ParcelOutcome{});
  }
  size_t readers_of(const std::string& id) {
    const auto status = owner_->owner().status(id);
    return status ? status->readers : 0;
  }
  bool granted(const std::string& id) {
    return scene_.run_until(5s, [&] { return readers_of(id) > 0; });
  }
  bool is_there(const std::string& id) { return owner_->owner().status(id).has_value(); }
  void cut(bool there, bool back) {
    if (there) scene_.wires.block(1, 0);
    if (back) scene_.wires.block(0, 1);
  }
  void mend() {
    scene_.wires.unblock(0, 1);
    scene_.wires.unblock(1, 0);
    reset_all();
  }
  void reset_all() {
    for (int i = 0; i < 16; ++i) scene_.wires.reset_any(false);
  }

  ParcelScene scene_;
  std::optional<ParcelNode> owner_;
  std::optional<ParcelNode> reader_;
};

// A read that went out as one stream was planned before any ticket, and so without the owner's block ids.
TEST_F(ParcelReconnect, AReadPlannedWithoutTheOwnersBlocksCopiesNoneWhenAOneSidedFabricComesBack) {
  let_hub_reach_owner(false);
  publish("the layout becomes known by it", {1}, kPublished);
  ASSERT_EQ(outcome_of(read(*reader_, "the layout becomes known by it", {40})).fabric, "tcp");
  scene_.wires.throttle(0, 1, 20us);
  publish("t", {5, 9, 6, 30}, kPublished);
  const Ending ending = read(*reader_, "t", {1, 2, 3, 4});
  ASSERT_TRUE(granted("t"));
  ASSERT_EQ(reader_->core().peer(reader_->peer(*owner_)).one_sided_path(), nullptr);
  let_hub_reach_owner(true);
  reset_all();
  const ParcelOutcome outcome = outcome_of(ending);
  ASSERT_NE(reader_->core().peer(reader_->peer(*owner_)).one_sided_path(), nullptr) << "the fabric did not come back";
  EXPECT_EQ(outcome.state, ReadState::accepted);
  EXPECT_EQ(outcome.bytes, 4u * 2 * 2 * ParcelNode::kHeadBytes);
  for (const uint32_t block : {1u, 2u, 3u, 4u}) EXPECT_TRUE(reader_->block_is(block, kPublished)) << block;
}

// While the reader is away its parcel ends, is forgotten, and its id is published again: rare, and possible because the
// owner's memory of what has ended is bounded. The blocks of the former ticket are then somebody else's.
TEST_F(ParcelReconnect, AReadWhoseIdHasBecomeAnotherParcelIsStaleAndDoesNotCopyTheFormerOnesBlocks) {
  NodeOptions options;
  options.name = "bystander";
  ParcelNode bystander(scene_, 2, options);
  publish("t", {5, 9, 13}, kPublished);
  const Ending ending = read(*reader_, "t", {1, 2, 3});
  ASSERT_TRUE(scene_.run_until(5s, [&] { return reader_->block_begins_with(1, kPublished); })) << "it does not read";
  scene_.wires.block(0, 1);
  scene_.wires.block(1, 0);
  owner_->owner().release("t", true);
  for (const uint32_t block : {5u, 9u, 13u}) owner_->fill_block(block, kOther);
  publish("u", {20}, kPublished);  // its end takes the place of the other's in both tables
  ASSERT_EQ(outcome_of(read(bystander, "u", {1})).state, ReadState::accepted);
  ASSERT_TRUE(scene_.run_until(5s, [&] { return !owner_->owner().status("u"); }));
  publish("t", {6, 10, 14}, kPublished);
  ASSERT_TRUE(owner_->owner().status("t")) << "the former one is remembered";
  scene_.wires.unblock(0, 1);
  scene_.wires.unblock(1, 0);
  reset_all();
  const ParcelOutcome outcome = outcome_of(ending);
  EXPECT_EQ(outcome.state, ReadState::stale);
  EXPECT_FALSE(outcome.state == ReadState::accepted && !reader_->block_is(3, kPublished)) << "somebody else's bytes";
  EXPECT_THAT(outcome.status.ok() ? "" : outcome.status.error().message, HasSubstr("another parcel"));
}

// A claim counts the sessions that break under it, each once, whoever tells of it: its patience is then that of eight
// dials, with longer and longer pauses.
TEST_F(ParcelReconnect, AReadWaitsForAnOwnerThatListensASecondLater) {
  owner_->kill(false);
  const Ending ending = read(*reader_, "t", {1});
  scene_.run_for(1s);
  ASSERT_FALSE(ending->has_value()) << (*ending)->status.error().to_string();
  owner_->start();
  publish("t", {5}, kPublished);
  EXPECT_EQ(outcome_of(ending).state, ReadState::accepted);
}

// As where the kernel has no route or the process no descriptor: no connection is even begun.
TEST_F(ParcelReconnect, AnOwnerThatCannotEvenBeDialledIsTriedWithPauses) {
  const auto nowhere = reader_->core().find_or_add_peer(Address{"203.0.113.1", 7});
  ASSERT_TRUE(nowhere.ok());
  reader_->reader().release(*nowhere, "t", false, reader_->now() + 30s);
  const TimePoint began = scene_.timeline.now();
  const ParcelOutcome outcome = outcome_of(read(*reader_, "t", {1}, *nowhere));
  EXPECT_EQ(outcome.state, ReadState::failed);
  EXPECT_GT(scene_.timeline.now() - began, 1s);
}

TEST_F(ParcelReconnect, AReleaseIsSentAgainWhenTheSessionBreaksUnderIt) {
  publish("u", {6}, kPublished);
  publish("t", {5}, kPublished);
  ASSERT_EQ(outcome_of(read(*reader_, "u", {1})).state, ReadState::accepted);
  cut(true, true);
  reader_->reader().release(reader_->peer(*owner_), "t", false, reader_->now() + 60s);
  scene_.run_for(500ms);
  ASSERT_TRUE(is_there("t"));
  mend();
  EXPECT_TRUE(scene_.run_until(10s, [&] { return !is_there("t"); })) << "its blocks wait for the end of the lease";
}

// The owner has judged, and what it said is lost with the session: the bytes are complete, and the parcel is gone.
TEST_F(ParcelReconnect, AVerdictThatIsLostIsAskedForAgain) {
  publish("t", {5, 9}, kPublished, true);
  const Ending ending = read(*reader_, "t", {1, 2});
  ASSERT_TRUE(scene_.run_until(5s, [&] { return reader_->block_begins_with(1, kPublished); })) << "it does not read";
  cut(false, true);
  ASSERT_TRUE(scene_.run_until(20s, [&] { return !is_there("t"); })) << "nothing was settled";
  EXPECT_FALSE(ending->has_value());
  mend();
  const ParcelOutcome outcome = outcome_of(ending);
  EXPECT_EQ(outcome.state, ReadState::accepted) << (outcome.status.ok() ? "" : outcome.status.error().to_string());
  for (const uint32_t block : {1u, 2u}) EXPECT_TRUE(reader_->block_is(block, kPublished)) << block;
}

TEST_F(ParcelReconnect, ASettleThatIsLostIsSentAgain) {
  publish("t", {5, 9}, kPublished, true);
  const Ending ending = read(*reader_, "t", {1, 2});
  ASSERT_TRUE(scene_.run_until(5s, [&] { return reader_->block_begins_with(1, kPublished); })) << "it does not read";
  cut(true, false);
  ASSERT_TRUE(scene_.run_until(5s, [&] { return reader_->block_is(2, kPublished); }));
  scene_.run_for(500ms);
  ASSERT_TRUE(is_there("t"));
  mend();
  const ParcelOutcome outcome = outcome_of(ending);
  EXPECT_EQ(outcome.state, ReadState::accepted) << (outcome.status.ok() ? "" : outcome.status.error().to_string());
  EXPECT_TRUE(scene_.run_until(5s, [&] { return !is_there("t"); }));
}

// Prefill and decode may be asked at once, and prefill may be slow.
TEST_F(ParcelReconnect, AClaimThatCameBeforeItsAnnouncementWaitsForThePublish) {
  const Ending ending = read(*reader_, "t", {1});
  scene_.run_for(1s);
  ASSERT_TRUE(owner_->owner().announce("t", 90s).ok());
  scene_.run_for(50s);
  ASSERT_FALSE(ending->has_value()) << (*ending)->status.error().to_string();
  publish("t", {5}, kPublished);
  EXPECT_EQ(outcome_of(ending).state, ReadState::accepted);
}

}  // namespace
}  // namespace kvferry::test
