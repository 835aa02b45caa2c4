#include <dlfcn.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "engine/memory/cuda/cuda_memory.h"
#include "test/cuda/fixture.h"
#include "test/support/eventually.h"
#include "test/support/fabric_folders.h"
#include "test/support/nic_fabric/control.h"

// Memory of GPUs by the fabrics of plug-ins: what is registered and how, who may see what a NIC has written, and what
// is left behind. The plug-in is that of a NIC that is not there (test/support/nic_fabric).

namespace kvferry::test {
namespace {

namespace fs = std::filesystem;
using fake_cuda::Rdma;

// Descriptors of the fake driver's memory that this process has open.
size_t open_descriptors() {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    count += std::filesystem::read_symlink(entry, gone).string().starts_with("/memfd:fake_cuda");
  }
  return count;
}

const nic_fabric::Control* nic_control() {
  void* const library = ::dlopen((nic_fabric_folder() + "/libkvferry_fabric_ucx.so").c_str(), RTLD_NOW | RTLD_LOCAL);
  return reinterpret_cast<nic_fabric::GetControl>(::dlsym(library, nic_fabric::kGetControl))();
}

class CudaFabrics : public Cuda {
 protected:
  static constexpr size_t kBytes = 100000;
  static constexpr int kCuda = static_cast<int>(MemoryKind::cuda);

  void start(const Rdma& rdma, std::vector<std::string> fabrics = {"ucx"}) {
    fake_->set_rdma(rdma);
    EngineConfig config;
    config.fabrics = std::move(fabrics);
    config.plugin_folder = nic_fabric_folder();
    config.logger = make_null_logger();
    config.missed_heartbeats = 60;  // a machine may stand still for a while
    const std::shared_ptr<MemoryOps> kind = std::make_shared<cuda::CudaMemory>(options());
    initiator_ = must(Engine::create(config, {kind}));
    owner_ = must(Engine::create(config, {kind}));
    ours_ = device_.allocate(kBytes);
    theirs_ = device_.allocate(kBytes);
    device_.store(ours_, pattern(kBytes, 1).data(), kBytes);
    device_.store(theirs_, pattern(kBytes, 2).data(), kBytes);
    local_ = must(initiator_->register_memory(ours_, kBytes, MemoryKind::cuda, kPrivate));
    remote_ = must(owner_->register_memory(theirs_, kBytes, MemoryKind::cuda, kRemoteReadWrite));
  }
  void TearDown() override {
    nic_->hold(false);
    local_ = Region();
    remote_ = Region();
    initiator_.reset();
    owner_.reset();
    Cuda::TearDown();
  }

  TransferRequest request(Operation operation) {
    TransferRequest out;
    out.peer = must(initiator_->peer(owner_->address()));
    out.operation = operation;
    for (uint64_t at = 0; at < kBytes; at += 10000) out.pairs.push_back({ours_ + at, remote_.id(), at, 5000});
    return out;
  }
  Outcome move(Operation operation) { return initiator_->transfer(request(operation)); }
  // Every block of `to` is what `seed` says.
  bool holds(const std::byte* to, uint64_t seed) {
    std::vector<std::byte> bytes(kBytes);
    device_.load(bytes.data(), to, kBytes);
    const std::vector<std::byte> expected = pattern(kBytes, seed);
    for (size_t at = 0; at < kBytes; at += 10000)
      if (std::memcmp(bytes.data() + at, expected.data() + at, 5000) != 0) return false;
    return true;
  }

  const nic_fabric::Control* const nic_ = nic_control();
  std::unique_ptr<Engine> initiator_;
  std::unique_ptr<Engine> owner_;
  std::byte* ours_ = nullptr;
  std::byte* theirs_ = nullptr;
  Region local_;
  Region remote_;
};

// The NIC itself refuses memory whose SYNC_MEMOPS is not set, and whose GPU's context is not current.
TEST_F(CudaFabrics, KnowMemoryAsLongAsItIsRegistered) {
  const uint64_t described = nic_->with_dmabuf();
  start({});
  EXPECT_EQ(nic_->mapped(kCuda), 2u);
  EXPECT_EQ(nic_->with_dmabuf() - described, 2u);
  EXPECT_EQ(open_descriptors(), 2u) << "beside those of the two allocations";
  ASSERT_TRUE(remote_.unregister().ok());
  EXPECT_EQ(nic_->mapped(kCuda), 1u);
  ASSERT_TRUE(local_.unregister().ok());
  EXPECT_EQ(nic_->mapped(kCuda), 0u);
}

TEST_F(CudaFabrics, MoveBytesBetweenGpusWithoutStagingMemory) {
  start({});
  const uint64_t copies = fake_->copies() + fake_->launches() + fake_->batches();
  const uint64_t moved = nic_->gpu_bytes();
  const Outcome read = move(Operation::read);
  ASSERT_TRUE(read.status.ok()) << read.status.error().to_string();
  EXPECT_EQ(read.fabric, "ucx");
  EXPECT_TRUE(holds(ours_, 2));
  device_.store(ours_, pattern(kBytes, 3).data(), kBytes);
  const Outcome write = move(Operation::write);
  ASSERT_TRUE(write.status.ok()) << write.status.error().to_string();
  EXPECT_TRUE(holds(theirs_, 3));
  EXPECT_EQ(fake_->copies() + fake_->launches() + fake_->batches(), copies);
  EXPECT_EQ(nic_->gpu_bytes() - moved, 2 * kBytes / 2 + 1) << "and the byte that is read back behind a write";
}

TEST_F(CudaFabrics, TakeMemoryWithoutADescriptorWhereTheDriverGivesNone) {
  const uint64_t described = nic_->with_dmabuf();
  start({.dmabuf = false});
  EXPECT_EQ(nic_->with_dmabuf(), described);
  EXPECT_EQ(nic_->mapped(kCuda), 2u);
  EXPECT_EQ(move(Operation::read).fabric, "ucx");
}

// ---- what a NIC has written, and who sees it

TEST_F(CudaFabrics, AskForNoFlushWhereTheGpuOrdersWrites) {
  start({.ordered = true});
  const uint64_t flushes = fake_->flushes();
  ASSERT_TRUE(move(Operation::read).status.ok());
  EXPECT_EQ(fake_->flushes(), flushes);
}

TEST_F(CudaFabrics, FlushBeforeAReadIsCalledDoneWhereTheGpuDoesNot) {
  start({.ordered = false});
  const uint64_t flushes = fake_->flushes();
  ASSERT_TRUE(move(Operation::read).status.ok());
  EXPECT_EQ(fake_->unseen(), 0u);
  EXPECT_TRUE(holds(ours_, 2));
  EXPECT_EQ(fake_->flushes() - flushes, 1u) << "once a transfer, not once a block";
}

// I8: the initiator cannot flush the owner's GPU. Its read behind the write does.
TEST_F(CudaFabrics, ReadBackBehindAWriteSoThatTheOwnersGpuSeesIt) {
  start({.ordered = false});
  const uint64_t flushes = fake_->flushes();
  ASSERT_TRUE(move(Operation::write).status.ok());
  EXPECT_EQ(fake_->unseen(), 0u);
  EXPECT_TRUE(holds(theirs_, 1));
  EXPECT_EQ(fake_->flushes(), flushes);
}

TEST_F(CudaFabrics, ReadBackBehindAWriteOnEachOfTheOwnersGpus) {
  start({.ordered = false});
  std::byte* const other = device_.allocate(kBytes);  // on the next GPU
  ASSERT_NE(device_.context_of(other), device_.context_of(theirs_));
  const Region region = must(owner_->register_memory(other, kBytes, MemoryKind::cuda, kRemoteReadWrite));
  TransferRequest both = request(Operation::write);
  for (uint64_t at = 0; at < kBytes; at += 10000) both.pairs.push_back({ours_ + at, region.id(), at, 5000});
  ASSERT_TRUE(initiator_->transfer(both).status.ok());
  EXPECT_EQ(fake_->unseen(), 0u);
  EXPECT_TRUE(holds(theirs_, 1));
  EXPECT_TRUE(holds(other, 1));
}

// I4: what a NIC has answered for and nobody sees yet would land in the memory's next use.
TEST_F(CudaFabrics, LeaveNothingThatLandsAfterACancelledRead) {
  start({.ordered = false});
  ASSERT_TRUE(move(Operation::read).status.ok());  // the connection stands
  nic_->hold(true);
  Transfer transfer = must(initiator_->submit(request(Operation::read)));
  ASSERT_TRUE(eventually([&] { return fake_->unseen() > 0; }));
  transfer.cancel();
  EXPECT_EQ(transfer.wait().status.error().code, ErrorCode::cancelled);
  EXPECT_EQ(fake_->unseen(), 0u);
  nic_->hold(false);
  EXPECT_TRUE(local_.unregister().ok());
}

// I4 at the owner: nobody read back behind a write that was given up.
TEST_F(CudaFabrics, LeaveNothingThatLandsAfterTheOwnerTookItsMemoryBack) {
  start({.ordered = false});
  ASSERT_TRUE(move(Operation::read).status.ok());
  nic_->hold(true);
  Transfer transfer = must(initiator_->submit(request(Operation::write)));
  ASSERT_TRUE(eventually([&] { return fake_->unseen() > 0; }));
  transfer.cancel();
  EXPECT_FALSE(transfer.wait().status.ok());
  nic_->hold(false);
  ASSERT_TRUE(remote_.unregister().ok());
  EXPECT_EQ(fake_->unseen(), 0u);
}

// By which the nearest of several NICs is chosen.
TEST_F(CudaFabrics, KnowWhereTheGpuOfMemoryIs) {
  const fs::path sys = fs::temp_directory_path() / ("kvf-gpu-sys-" + std::to_string(::getpid()));
  const fs::path gpu = sys / "devices/pci0000:1f/0000:1f:00.0/0000:20:00.0";
  fs::create_directories(gpu);
  fs::create_directories(sys / "bus/pci/devices");
  std::ofstream(gpu / "numa_node") << "1\n";
  fs::create_symlink(gpu, sys / "bus/pci/devices/0000:20:00.0");
  cuda::CudaMemory kind(options());
  const Place place = kind.place_of(device_.allocate(kBytes) + 10, Topology(sys.string()));
  EXPECT_EQ(place.pci, "pci0000:1f/0000:1f:00.0/0000:20:00.0");
  EXPECT_EQ(place.numa_node, 1);
  fs::remove_all(sys);
}

// ---- where it cannot be

TEST_F(CudaFabrics, LeaveGpusWithoutGpuDirectToTcpAndSayWhy) {
  start({.direct = false, .dmabuf = false}, {"ucx", "tcp"});
  EXPECT_EQ(nic_->mapped(kCuda), 0u);
  const Outcome outcome = move(Operation::read);
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
  EXPECT_EQ(outcome.fabric, "tcp");
  EXPECT_TRUE(holds(ours_, 2));
  const std::string described = owner_->describe();
  EXPECT_NE(described.find("not by ucx: the GPU has no GPUDirect RDMA"), std::string::npos) << described;
}

TEST_F(CudaFabrics, LeaveGpusThatNeitherOrderNorFlushToTcp) {
  start({.ordered = false, .flush = false}, {"ucx", "tcp"});
  EXPECT_EQ(nic_->mapped(kCuda), 0u);
  EXPECT_EQ(move(Operation::write).fabric, "tcp");
  EXPECT_TRUE(holds(theirs_, 1));
  const std::string described = owner_->describe();
  EXPECT_NE(described.find("does not order what NICs write"), std::string::npos) << described;
}

// The owner's has a key; the initiator's memory has no way to it but by staging.
TEST_F(CudaFabrics, LeaveATransferToTcpWhoseLocalMemoryTheyDoNotKnow) {
  start({}, {"ucx", "tcp"});
  ASSERT_TRUE(local_.unregister().ok());
  fake_->withhold_sync_memops(true);  // which this NIC insists on
  device_.store(ours_, pattern(kBytes, 4).data(), kBytes);
  std::byte* const other = device_.allocate(kBytes);
  local_ = must(initiator_->register_memory(other, kBytes, MemoryKind::cuda, kPrivate));
  EXPECT_EQ(nic_->mapped(kCuda), 1u);
  ours_ = other;
  const Outcome outcome = move(Operation::read);
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
  EXPECT_EQ(outcome.fabric, "tcp");
  EXPECT_TRUE(holds(other, 2));
}

}  // namespace
}  // namespace kvferry::test
