#include "engine/memory/cuda/cuda_memory.h"
#include "test/cuda/fixture.h"
#include "test/support/fabric_folders.h"

// Every call of the driver fails once, and each time nothing is left behind and no wrong byte is taken for a right one.

namespace kvferry::test {
namespace {

using cuda::CudaMemory;
using cuda::Gather;

constexpr size_t kBytes = 100000;
constexpr Operation kBoth[] = {Operation::read, Operation::write};

const char* name_of(Operation operation) {
  return operation == Operation::read ? "a read" : "a write";
}

// Where each of them has its blocks.
constexpr uint64_t place(Operation operation) {
  return operation == Operation::read ? 0 : kBytes / 2;
}

class CudaFailures : public Cuda, public ::testing::WithParamInterface<Gather> {
 protected:
  void SetUp() override {
    Cuda::SetUp();
    if (IsSkipped()) return;
    ours_ = device_.allocate(kBytes);
    theirs_ = device_.allocate(kBytes);
    fill();
    before_ = fake_->live();
  }

  void fill() {
    device_.store(ours_, pattern(kBytes, 1).data(), kBytes);
    device_.store(theirs_, pattern(kBytes, 2).data(), kBytes);
  }

  // Runs `scenario` until it is through without the nth call having come. It returns whether it did what it should.
  // `check` looks at what it left, outside of the counted calls.
  void loop(
      const std::function<bool()>& scenario, const std::function<void()>& check = [] {}) {
    fake_->fail_at(0);
    ASSERT_TRUE(scenario());
    const uint64_t counted = fake_->calls();
    ASSERT_GT(counted, 20u);
    uint64_t nth = 0;
    while (true) {
      fake_->fail_at(++nth);
      const bool through = scenario();
      const bool came = fake_->failed();
      fake_->fail_at(0);
      ASSERT_EQ(fake_->live().of_the_kind(), before_.of_the_kind()) << "left behind after failure " << nth;
      ASSERT_EQ(current_context(), nullptr) << "after failure " << nth;
      SCOPED_TRACE(nth);
      check();
      if (!came) {
        EXPECT_TRUE(through);
        break;
      }
      ASSERT_LE(nth, counted);
    }
    EXPECT_EQ(nth - 1, counted);
    RecordProperty("calls", static_cast<int>(counted));
    std::cout << "each of " << counted << " calls failed once, the last tried was the " << nth - 1 << ".\n";
  }

  void loop_transfers(const std::vector<std::string>& fabrics);

  std::vector<std::byte> load(std::byte* memory) {
    std::vector<std::byte> out(kBytes);
    device_.load(out.data(), memory, kBytes);
    return out;
  }

  std::byte* ours_ = nullptr;
  std::byte* theirs_ = nullptr;
  fake_cuda::Live before_{};
};

INSTANTIATE_TEST_SUITE_P(All, CudaFailures, ::testing::Values(Gather::kernel, Gather::batch, Gather::single),
                         [](const auto& tested) { return std::string(to_string(tested.param)); });

TEST_P(CudaFailures, AtEachCallOfTheKind) {
  const auto expected = pattern(kBytes, 1);
  loop([&] {
    CudaMemory kind(options(GetParam()));
    bool right = kind.check(ours_, kBytes).ok() && kind.check(theirs_, kBytes).ok();
    std::byte* const staging = kind.allocate_staging(20 * 100);
    if (staging == nullptr) return false;
    std::memset(staging, 0, 20 * 100);
    const Status landed = copy(kind, CopyDirection::to_host, scattered(ours_, staging, 20, 100, 1000));
    for (size_t i = 0; i < 20 && landed.ok(); ++i)
      EXPECT_EQ(std::memcmp(staging + i * 100, expected.data() + i * 1000, 100), 0) << "landed, and is wrong";
    right &= landed.ok() && copy(kind, CopyDirection::to_device, {{ours_, staging, 100}}).ok();
    kind.free_staging(staging, 20 * 100);
    return right;
  });
}

// The same through two engines: a read and a write of scattered blocks from GPU to GPU.
TEST_P(CudaFailures, AtEachCallOfATransfer) {
  loop_transfers({"tcp"});
}

// By a NIC, to GPUs that have to flush what it writes; by tcp where its registration fails.
class CudaNicFailures : public CudaFailures {};
INSTANTIATE_TEST_SUITE_P(All, CudaNicFailures, ::testing::Values(Gather::single));  // nothing is gathered

TEST_P(CudaNicFailures, AtEachCallOfATransfer) {
  fake_->set_rdma({.ordered = false});
  loop_transfers({"ucx", "tcp"});
  EXPECT_EQ(fake_->unseen(), 0u);
}

void CudaFailures::loop_transfers(const std::vector<std::string>& fabrics) {
  std::vector<Operation> moved;
  const auto scenario = [&] {
    moved.clear();
    std::vector<std::shared_ptr<MemoryOps>> kinds{std::make_shared<CudaMemory>(options(GetParam()))};
    EngineConfig config;
    config.fabrics = fabrics;
    config.plugin_folder = nic_fabric_folder();
    config.logger = make_null_logger();
    config.missed_heartbeats = 60;  // a session that a stand-still ends would be taken up again, by more calls
    auto initiator = must(Engine::create(config, kinds));
    auto owner = must(Engine::create(config, kinds));
    kinds.clear();
    auto local = initiator->register_memory(ours_, kBytes, MemoryKind::cuda, kPrivate);
    auto remote = owner->register_memory(theirs_, kBytes, MemoryKind::cuda, kRemoteReadWrite);
    if (!local || !remote) return false;
    const PeerRef peer = must(initiator->peer(owner->address()));
    for (const Operation operation : kBoth) {
      TransferRequest request;
      request.peer = peer;
      request.operation = operation;
      for (uint64_t i = 0; i < 20; ++i)
        request.pairs.push_back({ours_ + place(operation) + i * 1000, remote->id(), place(operation) + i * 2000, 100});
      if (initiator->transfer(request).status.ok()) moved.push_back(operation);
    }
    return moved.size() == 2;
  };
  loop(scenario, [&] {
    const auto ours = load(ours_);
    const auto theirs = load(theirs_);
    for (const Operation operation : moved)
      for (size_t i = 0; i < 20; ++i)
        ASSERT_EQ(
            std::memcmp(ours.data() + place(operation) + i * 1000, theirs.data() + place(operation) + i * 2000, 100), 0)
            << name_of(operation) << " is ok, and its bytes are wrong";
    fill();
  });
}

}  // namespace
}  // namespace kvferry::test
