#include <gtest/gtest.h>

#include "engine/fabric/loopback/loopback.h"
#include "engine/parcel.h"
#include "test/support/engines.h"
#include "test/support/eventually.h"

// Parcels between two real engines, over every fabric.

namespace kvferry::test {
namespace {

constexpr uint32_t kBlocks = 64;
constexpr uint32_t kLayers = 3;
constexpr size_t kCacheBytes = size_t{kLayers} * kBlocks * 2 * 4 * 16 * 8 * 2;

// One rank's cache and the engine that serves it.
struct Rank {
  Rank(const std::string& name, const std::string& fabric, std::shared_ptr<loopback::Hub> hub, uint64_t seed)
      : cache(nullptr, kCacheBytes) {
    EngineConfig config;
    config.engine_id = name;
    config.fabrics = {fabric};
    config.loopback = std::move(hub);
    config.heartbeat = std::chrono::milliseconds(100);
    engine = must(Engine::create(config));
    cache.store(pattern(kCacheBytes, seed));
    region = must(engine->register_memory(cache.base(), kCacheBytes, MemoryKind::host, kPrivate));
    parcels.emplace(*engine);
    const Status status = parcels->set_cache(name + "-instance", layout());
    EXPECT_TRUE(status.ok()) << status.error().to_string();
  }

  KvLayout layout() const {
    KvLayout out;
    out.layers_total = kLayers;
    KvGroup group;
    group.block_tokens = 16;
    group.block_count = kBlocks;
    group.heads_total = group.heads_local = 4;
    group.head_size_k = group.head_size_v = 8;
    group.element_bits = 16;
    out.groups = {group};
    for (uint32_t i = 0; i < kLayers; ++i)
      out.layers.push_back(dense_layer(i, 0, group, PageShape::head_major, KvOrder::in_block, region.id(),
                                       uint64_t{i} * kCacheBytes / kLayers));
    return out;
  }
  // The bytes of one block, over all layers.
  std::vector<std::byte> block(uint32_t id) const {
    const size_t page = kCacheBytes / kLayers / kBlocks;
    std::vector<std::byte> out;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      const std::byte* at = cache.base() + layer * (kCacheBytes / kLayers) + id * page;
      out.insert(out.end(), at, at + page);
    }
    return out;
  }

  Buffer cache;
  std::unique_ptr<Engine> engine;
  Region region;
  std::optional<Parcels> parcels;
};

class ParcelConformance : public ::testing::TestWithParam<const char*> {
 protected:
  ParcelSpec spec(const std::string& id, std::vector<uint32_t> blocks) {
    ParcelSpec out;
    out.transfer_id = id;
    out.tokens = blocks.size() * 16;
    out.blocks = {{0, std::move(blocks)}};
    out.fingerprint = "model-a";
    return out;
  }
  ParcelReadRequest request(const std::string& id, std::vector<uint32_t> blocks) {
    ParcelReadRequest out;
    out.transfer_id = id;
    out.owners = {must(reader_.engine->peer(owner_.engine->address()))};
    out.group_instance_id = "decoder";
    out.fingerprint = "model-a";
    out.end_token = static_cast<uint32_t>(blocks.size() * 16);
    out.blocks = {{0, std::move(blocks)}};
    out.timeout = std::chrono::seconds(10);
    return out;
  }
  ParcelReadOutcome read(ParcelReadRequest request) { return must(reader_.parcels->read(std::move(request))).wait(); }
  // The next release that the owner is told of.
  ParcelReleased released() {
    std::vector<ParcelReleased> taken;
    EXPECT_TRUE(eventually([&] {
      taken = owner_.parcels->take_released();
      return !taken.empty();
    }));
    EXPECT_EQ(taken.size(), 1u);
    return taken.empty() ? ParcelReleased{} : taken.front();
  }
  void publish(ParcelSpec spec) {
    const Status status = owner_.parcels->publish(std::move(spec));
    ASSERT_TRUE(status.ok()) << status.error().to_string();
  }

  std::shared_ptr<loopback::Hub> hub_ = std::make_shared<loopback::Hub>();
  Rank owner_{"owner", GetParam(), hub_, 1};
  Rank reader_{"reader", GetParam(), hub_, 2};
};

TEST_P(ParcelConformance, AnAcceptedReadHoldsWhatWasPublishedAndFreesTheBlocks) {
  publish(spec("t1", {5, 9, 10, 3}));
  const ParcelReadOutcome outcome = read(request("t1", {7, 8, 20, 21}));
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
  EXPECT_EQ(outcome.state, ReadState::accepted);
  EXPECT_EQ(outcome.fabric, GetParam());
  EXPECT_EQ(outcome.bytes, 4 * kCacheBytes / kBlocks);
  const std::pair<uint32_t, uint32_t> moved[] = {{5, 7}, {9, 8}, {10, 20}, {3, 21}};
  for (const auto& [from, to] : moved) EXPECT_TRUE(owner_.block(from) == reader_.block(to)) << from << " to " << to;
  EXPECT_EQ(released().why, ReleaseReason::settled);
  EXPECT_FALSE(owner_.parcels->status("t1"));
}

TEST_P(ParcelConformance, TheSecondReadTakesOneStreamOnceTheLayoutIsKnown) {
  for (const char* id : {"t1", "t2", "t3"}) {
    publish(spec(id, {1, 2}));
    const ParcelReadOutcome outcome = read(request(id, {30, 31}));
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
    EXPECT_TRUE(owner_.block(1) == reader_.block(30));
    EXPECT_EQ(released().why, ReleaseReason::settled);
  }
}

TEST_P(ParcelConformance, AClaimBeforePublishWaitsForIt) {
  ASSERT_TRUE(owner_.parcels->announce("t1").ok());
  const ParcelReading reading = must(reader_.parcels->read(request("t1", {4})));
  EXPECT_FALSE(reading.poll());
  publish(spec("t1", {6}));
  EXPECT_EQ(reading.wait().state, ReadState::accepted);
  EXPECT_TRUE(owner_.block(6) == reader_.block(4));
}

TEST_P(ParcelConformance, AWithdrawnParcelIsGoneAtOnce) {
  ASSERT_TRUE(owner_.parcels->announce("t1").ok());
  const ParcelReading reading = must(reader_.parcels->read(request("t1", {4})));
  EXPECT_FALSE(reading.poll());
  owner_.parcels->withdraw("t1");
  EXPECT_EQ(reading.wait().state, ReadState::gone);
}

TEST_P(ParcelConformance, ADifferentFingerprintIsAConflictAndMovesNothing) {
  publish(spec("t1", {6}));
  ParcelReadRequest wrong = request("t1", {4});
  wrong.fingerprint = "model-b";
  const std::vector<std::byte> before = reader_.cache.load();
  EXPECT_EQ(read(wrong).state, ReadState::conflict);
  EXPECT_TRUE(reader_.cache.load() == before);
}

// What a proxy that mixes up two requests would cause: both ids live, but each prompt has its own fingerprint.
TEST_P(ParcelConformance, SwappedTransferIdsGiveNoAnswerFromTheWrongKv) {
  ParcelSpec a = spec("a", {1});
  ParcelSpec b = spec("b", {2});
  a.fingerprint = "prompt-a";
  b.fingerprint = "prompt-b";
  publish(a);
  publish(b);
  ParcelReadRequest swapped = request("b", {4});
  swapped.fingerprint = "prompt-a";
  EXPECT_EQ(read(swapped).state, ReadState::conflict);
}

TEST_P(ParcelConformance, AnotherReaderGroupIsRefusedWhileTheFirstHasTheParcel) {
  publish(spec("t1", {6}));
  ParcelReadRequest first = request("t1", {4});
  first.more = true;
  EXPECT_EQ(read(first).state, ReadState::accepted);
  ParcelReadRequest other = request("t1", {5});
  other.group_instance_id = "other decoder";
  EXPECT_EQ(read(other).state, ReadState::conflict);
  EXPECT_EQ(read(request("t1", {5})).state, ReadState::accepted);
  EXPECT_EQ(released().why, ReleaseReason::settled);
}

TEST_P(ParcelConformance, AnOwnerThatRestartedIsGone) {
  publish(spec("t1", {6}));
  ParcelReadRequest wrong = request("t1", {4});
  wrong.expected_instance_id = "the instance before";
  EXPECT_EQ(read(wrong).state, ReadState::gone);
}

TEST_P(ParcelConformance, AReleaseBeforePublishGivesTheBlocksStraightBack) {
  EXPECT_TRUE(owner_.parcels->release("t1", false));
  publish(spec("t1", {6}));
  EXPECT_EQ(released().why, ReleaseReason::aborted);
  EXPECT_EQ(read(request("t1", {4})).state, ReadState::gone);
}

TEST_P(ParcelConformance, AForcedReleaseIsImmediateAndTellsOnce) {
  publish(spec("t1", {6}));
  EXPECT_TRUE(owner_.parcels->release("t1", true));
  EXPECT_TRUE(owner_.parcels->release("t1", true));
  EXPECT_EQ(released().why, ReleaseReason::released);
  EXPECT_EQ(read(request("t1", {4})).state, ReadState::gone);
  EXPECT_TRUE(owner_.parcels->take_released().empty());
}

TEST_P(ParcelConformance, TheLeaseEndsInTime) {
  ParcelSpec brief = spec("t1", {6});
  brief.lease = std::chrono::milliseconds(50);
  const auto began = std::chrono::steady_clock::now();
  publish(brief);
  EXPECT_EQ(released().why, ReleaseReason::expired);
  EXPECT_GE(std::chrono::steady_clock::now() - began, std::chrono::milliseconds(50));
  EXPECT_EQ(read(request("t1", {4})).state, ReadState::gone);
}

TEST_P(ParcelConformance, ADigestThatFitsIsAccepted) {
  ParcelSpec with = spec("t1", {6, 7});
  with.digest = true;
  publish(with);
  EXPECT_EQ(read(request("t1", {4, 5})).state, ReadState::accepted);
  EXPECT_EQ(released().why, ReleaseReason::settled);
}

TEST_P(ParcelConformance, PublishingALivingIdIsRefused) {
  publish(spec("t1", {6}));
  EXPECT_EQ(owner_.parcels->publish(spec("t1", {7})).error().code, ErrorCode::already_exists);
}

INSTANTIATE_TEST_SUITE_P(All, ParcelConformance, ::testing::Values("tcp", "local", "loopback"));

}  // namespace
}  // namespace kvferry::test
