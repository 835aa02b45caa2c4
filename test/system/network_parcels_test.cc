#include <gmock/gmock.h>

#include "engine/parcel.h"
#include "test/support/peek.h"
#include "test/system/network.h"

// Parcels over a network that loses, or is cut in the middle of one (I1, I2, I3, I5).

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint32_t kBlocks = 32;
constexpr size_t kBlockBytes = size_t{256} << 10;
constexpr size_t kCacheBytes = kBlocks * kBlockBytes;
constexpr int kHeartbeat = 300;  // ms
constexpr Duration kReaderGrace = ParcelLimits().reader_grace;

// One rank: an engine, a cache of one layer, and its parcels.
struct Rank {
  Rank(const std::string& name, const std::string& host, int missed_heartbeats) : cache(kCacheBytes) {
    EngineConfig config;
    config.engine_id = name;
    config.listen = host + ":0";
    config.allow_open = true;
    config.fabrics = {"tcp"};
    config.heartbeat = milliseconds(kHeartbeat);
    config.missed_heartbeats = missed_heartbeats;
    config.logger = make_null_logger();
    engine = must(Engine::create(config));
    region = must(engine->register_memory(cache.data(), kCacheBytes, MemoryKind::host, kPrivate));
    parcels.emplace(*engine);
    const Status status = parcels->set_cache(name + "-instance", layout());
    EXPECT_TRUE(status.ok()) << status.error().to_string();
  }
  KvLayout layout() const {
    KvGroup group;
    group.block_tokens = 16;
    group.block_count = kBlocks;
    group.heads_total = group.heads_local = 32;
    group.head_size_k = group.head_size_v = 128;
    group.element_bits = 16;
    KvLayout out;
    out.layers_total = 1;
    out.groups = {group};
    out.layers.push_back(dense_layer(0, 0, group, PageShape::head_major, KvOrder::in_block, region.id(), 0));
    return out;
  }

  std::vector<std::byte> cache;
  std::unique_ptr<Engine> engine;
  Region region;
  std::optional<Parcels> parcels;
};

class NetworkFaultsOfParcels : public OnALink<::testing::Test> {
 protected:
  void SetUp() override {
    OnALink::SetUp();
    if (!IsSkipped()) start(kPatient);
  }
  void start(int missed_heartbeats) {
    reader_.emplace("reader", Link::address(Side::right), missed_heartbeats);
    const Inside left(*link_, Side::left);
    owner_.emplace("owner", Link::address(Side::left), missed_heartbeats);
  }

  static std::vector<uint32_t> all_blocks() {
    std::vector<uint32_t> ids;
    for (uint32_t id = 0; id < kBlocks; ++id) ids.push_back(id);
    return ids;
  }
  // Publishes a parcel of the whole cache, filled anew, and begins to read it.
  ParcelReading begin(Duration timeout) {
    ++seed_;
    std::fill(owner_->cache.begin(), owner_->cache.end(), std::byte{seed_});
    std::fill(reader_->cache.begin(), reader_->cache.end(), std::byte{0});
    ParcelSpec spec;
    spec.transfer_id = "parcel-" + std::to_string(seed_);
    spec.tokens = kBlocks * 16;
    spec.blocks = {{0, all_blocks()}};
    spec.fingerprint = "model";
    const Status published = owner_->parcels->publish(std::move(spec));
    EXPECT_TRUE(published.ok()) << published.error().to_string();
    ParcelReadRequest request;
    request.transfer_id = "parcel-" + std::to_string(seed_);
    request.owners = {must(reader_->engine->peer(owner_->engine->address()))};
    request.group_instance_id = "decoder";
    request.fingerprint = "model";
    request.end_token = kBlocks * 16;
    request.blocks = {{0, all_blocks()}};
    request.timeout = timeout;
    return must(reader_->parcels->read(std::move(request)));
  }
  bool landed(size_t offset) { return peek(reader_->cache.data() + offset) == std::byte{seed_}; }
  // A quarter is there, and not all of it.
  bool reach_the_middle(const ParcelReading& reading) {
    EXPECT_TRUE(eventually([&] { return reading.done() || landed(kCacheBytes / 4); }));
    return !reading.done() && !landed(kCacheBytes - 1);
  }
  void expect_released(Duration limit) {
    const Stopwatch watch;
    std::vector<ParcelReleased> taken;
    EXPECT_TRUE(eventually([&] { return !(taken = owner_->parcels->take_released()).empty(); }));
    EXPECT_LT(watch.elapsed(), limit);
    ASSERT_EQ(taken.size(), 1u);
    EXPECT_EQ(taken[0].transfer_id, "parcel-" + std::to_string(seed_));
  }
  void expect_accepted(const ParcelReading& reading) {
    const ParcelReadOutcome outcome = reading.wait();
    ASSERT_EQ(outcome.state, ReadState::accepted) << outcome.status.error().to_string();
    EXPECT_EQ(std::count(reader_->cache.begin(), reader_->cache.end(), std::byte{seed_}),
              static_cast<ptrdiff_t>(kCacheBytes));
    expect_released(seconds(20));
  }

  std::optional<Rank> owner_;
  std::optional<Rank> reader_;
  uint8_t seed_ = 0;
};

TEST_F(NetworkFaultsOfParcels, LossDelayAndDuplicatesCostOnlyTime) {
  for (const char* command : {"delay 2ms", "loss 0.01", "duplicate 0.01"}) shape(command);
  for (int i = 0; i < 2; ++i) {  // by ticket, then by one stream
    const uint64_t lost_before = stats().lost;
    expect_accepted(begin(seconds(60)));
    EXPECT_GT(stats().lost, lost_before) << "nothing was lost in the middle";
  }
}

// The read ends by its deadline, its blocks are not used; the owner has its blocks back within the grace.
TEST_F(NetworkFaultsOfParcels, ACutInTheMiddleEndsBothSidesInBoundedTimeAndHeals) {
  start(3);
  expect_accepted(begin(seconds(30)));
  bool hit = false;
  for (int attempt = 0; attempt < 10 && !hit; ++attempt) {
    shape("rate 20M");
    const Stopwatch watch;
    const ParcelReading reading = begin(seconds(2));
    hit = reach_the_middle(reading);
    shape("cut");
    const ParcelReadOutcome outcome = reading.wait();
    EXPECT_LT(watch.elapsed(), seconds(2) + kSlack);
    hit &= outcome.state != ReadState::accepted;
    if (hit) {
      EXPECT_FALSE(outcome.status.ok());
      EXPECT_THAT(outcome.status.error().to_string(), ::testing::HasSubstr("parcel-")) << to_string(outcome.state);
      expect_released(kReaderGrace + milliseconds(4 * kHeartbeat) + kSlack);
      heal();
      expect_accepted(begin(seconds(30)));
      return;
    }
    heal();
    expect_released(seconds(20));
  }
  FAIL() << "the cut never came in the middle of a read";
}

// I4: what was on its way when a read was given up does not land in blocks that belong to somebody else by now.
TEST_F(NetworkFaultsOfParcels, NothingOfAReadThatWasGivenUpLandsAfterwards) {
  expect_accepted(begin(seconds(30)));
  bool hit = false;
  for (int attempt = 0; attempt < 10 && !hit; ++attempt) {
    shape("rate 20M");
    const ParcelReading reading = begin(seconds(20));
    hit = reach_the_middle(reading);
    reading.cancel();
    const std::vector<std::byte> at_return = reader_->cache;
    shape("rate 0");
    expect_released(seconds(20));
    ASSERT_TRUE(must(reader_->engine->notify(must(reader_->engine->peer(owner_->engine->address())), {"n", ""}))
                    .wait()
                    .status.ok());
    EXPECT_TRUE(reader_->cache == at_return);
    heal();
  }
  EXPECT_TRUE(hit) << "no cancel came in the middle of a read";
  expect_accepted(begin(seconds(30)));
}

// A cut that heals within the grace: the read goes on under its claim, or fails; it is never accepted with other bytes.
TEST_F(NetworkFaultsOfParcels, ACutThatHealsInTimeDoesNotSpoilTheRead) {
  expect_accepted(begin(seconds(30)));
  bool hit = false;
  for (int attempt = 0; attempt < 10 && !hit; ++attempt) {
    shape("rate 20M");
    const ParcelReading reading = begin(seconds(60));
    hit = reach_the_middle(reading);
    const uint64_t before = stats().cut;
    shape("cut");
    hit &= !reading.done();
    ASSERT_TRUE(eventually([&] { return stats().cut > before; }));
    shape("heal");
    expect_accepted(reading);
  }
  EXPECT_TRUE(hit) << "the cut never came in the middle of a read";
}

}  // namespace
}  // namespace kvferry::test
