#include <sstream>

#include "engine/memory/cuda/cuda_memory.h"
#include "test/cuda/fixture.h"
#include "test/support/eventually.h"
#include "test/support/process.h"

// GPU memory of two processes on one host: mapped, not carried.

namespace kvferry::test {
namespace {

using std::chrono::seconds;

constexpr size_t kBytes = size_t{4} << 20;
constexpr size_t kHalf = kBytes / 2;

class CudaSharing : public Cuda {
 protected:
  void SetUp() override {
    Cuda::SetUp();
    if (IsSkipped()) return;
    memory_ = device_.allocate(kBytes);
    auto spawned = Process::spawn(KVF_TEST_GPU_OWNER, {std::to_string(kBytes)});
    ASSERT_TRUE(spawned.ok());
    owner_.emplace(std::move(*spawned));
    std::istringstream words(must(owner_->read_line_with("ready", seconds(60))));
    std::string ready;
    words >> ready >> address_ >> regions_[0] >> regions_[1];
    make_reader({"local", "tcp"});
  }

  void make_reader(const std::vector<std::string>& fabrics) {
    region_ = Region();
    EngineConfig config;
    config.engine_id = "gpu-reader";
    config.fabrics = fabrics;
    config.heartbeat = std::chrono::milliseconds(200);
    config.missed_heartbeats = 300;  // a machine that stands still is no dead peer
    reader_ = must(Engine::create(config, {std::make_shared<cuda::CudaMemory>(options())}));
    region_ = must(reader_->register_memory(memory_, kBytes, MemoryKind::cuda, kPrivate));
    peer_ = must(reader_->peer(address_));
  }

  Outcome move(Operation operation, const std::vector<Pair>& pairs) {
    return reader_->transfer({peer_, operation, pairs, {}, {}, 0, 0});
  }
  std::vector<std::byte> load() const {
    std::vector<std::byte> out(kBytes);
    device_.load(out.data(), memory_, kBytes);
    return out;
  }
  std::string tell(const std::string& line, const std::string& answer) {
    EXPECT_TRUE(owner_->write(line + "\n").ok());
    return must(owner_->read_line_with(answer, seconds(60)));
  }
  uint64_t imported() const { return fake_->live().imported; }

  std::byte* memory_ = nullptr;
  std::optional<Process> owner_;
  std::string address_;
  RegionId regions_[2] = {};
  std::unique_ptr<Engine> reader_;
  Region region_;
  PeerRef peer_;
};

TEST_F(CudaSharing, MapsAnAllocationOnceHoweverManyRegionsItHas) {
  const uint64_t before = fake_->imports();
  const Outcome read =
      move(Operation::read, {{memory_, regions_[0], 0, kHalf}, {memory_ + kHalf, regions_[1], 0, kHalf}});
  ASSERT_TRUE(read.status.ok()) << read.status.error().to_string();
  EXPECT_EQ(read.fabric, "local");
  EXPECT_TRUE(load() == pattern(kBytes, 5));
  EXPECT_EQ(fake_->imports() - before, 1u);
  EXPECT_EQ(imported(), 1u);
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(move(Operation::read, {{memory_, regions_[1], 7, 100}}).status.ok());
  EXPECT_EQ(fake_->imports() - before, 1u);
}

TEST_F(CudaSharing, WritesWhatTheOwnerThenHas) {
  auto expected = pattern(kBytes, 5);
  const auto ours = pattern(kBytes, 9);
  device_.store(memory_, ours.data(), kBytes);
  std::vector<Pair> pairs;
  for (size_t i = 0; i < 700; ++i) {
    pairs.push_back({memory_ + i * 2000, regions_[1], i * 2048, 1001});
    std::memcpy(expected.data() + kHalf + i * 2048, ours.data() + i * 2000, 1001);
  }
  const Outcome write = move(Operation::write, pairs);
  ASSERT_TRUE(write.status.ok()) << write.status.error().to_string();
  EXPECT_EQ(write.fabric, "local");
  uint64_t sum = 0;
  for (const std::byte byte : expected) sum = sum * 31 + static_cast<uint64_t>(byte);
  EXPECT_EQ(tell("sum", "sum"), "sum " + std::to_string(sum));
}

TEST_F(CudaSharing, UnmapsWhenTheRegionsGenerationHasMovedAndTheOwnerWaitsForThat) {
  ASSERT_TRUE(
      move(Operation::read, {{memory_, regions_[0], 0, 100}, {memory_ + 100, regions_[1], 0, 100}}).status.ok());
  EXPECT_EQ(imported(), 1u);
  EXPECT_EQ(tell("unregister 0", "unregistered"), "unregistered ok");
  EXPECT_EQ(imported(), 1u);  // the other region is in the same allocation
  EXPECT_EQ(move(Operation::read, {{memory_, regions_[0], 0, 100}}).status.error().code, ErrorCode::not_found);
  EXPECT_TRUE(move(Operation::read, {{memory_, regions_[1], 0, 100}}).status.ok());
  EXPECT_EQ(tell("unregister 1", "unregistered"), "unregistered ok");
  EXPECT_EQ(imported(), 0u);  // already: unregister() does not return before
}

TEST_F(CudaSharing, UnmapsWhenThePeerDies) {
  ASSERT_TRUE(move(Operation::read, {{memory_, regions_[0], 0, 100}}).status.ok());
  EXPECT_EQ(imported(), 1u);
  ASSERT_TRUE(owner_->kill().ok());
  EXPECT_TRUE(eventually([&] { return imported() == 0; }));
}

TEST_F(CudaSharing, UnmapsWithItsEngine) {
  ASSERT_TRUE(move(Operation::read, {{memory_, regions_[0], 0, 100}}).status.ok());
  EXPECT_EQ(imported(), 1u);
  region_ = Region();
  reader_.reset();
  EXPECT_EQ(imported(), 0u);
  // And the owner does not wait for whoever has gone.
  EXPECT_EQ(tell("unregister 0", "unregistered"), "unregistered ok");
}

TEST_F(CudaSharing, TakesTcpWhenMappingFails) {
  ASSERT_TRUE(peer_.connect(seconds(60)).ok());
  ASSERT_TRUE(peer_.sync(seconds(60)).ok());
  // The calls until the mapping are a few; one of them is cuIpcOpenMemHandle.
  bool fell_back = false;
  for (uint64_t nth = 1; nth < 12; ++nth) {
    make_reader({"local", "tcp"});
    ASSERT_TRUE(peer_.connect(seconds(60)).ok());
    ASSERT_TRUE(peer_.sync(seconds(60)).ok());
    fake_->fail_at(nth);
    const Outcome outcome = move(Operation::read, {{memory_, regions_[0], 0, 100}});
    fake_->fail_at(0);
    fell_back |= outcome.status.ok() && outcome.fabric == "tcp";
    EXPECT_LE(imported(), 1u);
  }
  EXPECT_TRUE(fell_back);
  region_ = Region();
  reader_.reset();
  EXPECT_EQ(imported(), 0u);
}

TEST_F(CudaSharing, RefusesAKeyThatPromisesMoreThanItsMemoryHolds) {
  cuda::CudaMemory kind(options());
  ASSERT_TRUE(kind.check(memory_, kBytes).ok());
  std::string key;
  for (const RegionInfo& region : [&] {
         EXPECT_TRUE(peer_.connect(seconds(60)).ok());
         return peer_.regions();
       }())
    if (region.id == regions_[1]) key = *find_key(region, "local");
  ASSERT_FALSE(key.empty());
  EXPECT_EQ(kind.map(key, kHalf + 1).error().code, ErrorCode::protocol);
  EXPECT_EQ(kind.map(key, UINT64_MAX - 5).error().code, ErrorCode::protocol);
  EXPECT_EQ(kind.map(key.substr(1), 10).error().code, ErrorCode::protocol);
  EXPECT_EQ(imported(), 0u);
  EXPECT_TRUE(kind.map(key, kHalf).ok());
  EXPECT_EQ(imported(), 0u);  // nobody kept it
}

}  // namespace
}  // namespace kvferry::test
