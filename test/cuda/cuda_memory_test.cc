#include "engine/memory/cuda/cuda_memory.h"

#include <thread>

#include "test/cuda/fixture.h"

namespace kvferry::test {
namespace {

using cuda::ContextScope;
using cuda::CudaMemory;
using cuda::Gather;

class CudaKind : public Cuda {
 protected:
  CudaMemory kind_{options()};
};

TEST_F(CudaKind, SaysWhyItIsNotViable) {
  const std::pair<std::string, std::string> wrong[] = {{"no-such-driver.so", "cannot load no-such-driver.so"},
                                                       {"libm.so.6", "it has no cuInit"}};
  for (const auto& [library, why] : wrong) {
    CudaMemory absent({library, Gather::automatic, {}});
    const Status status = absent.check(&absent, 10);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, ErrorCode::unsupported);
    EXPECT_NE(status.error().to_string().find(why), std::string::npos) << status.error().to_string();
    EXPECT_NE(absent.describe().find("not viable"), std::string::npos);
    EXPECT_NE(absent.describe().find(why), std::string::npos) << absent.describe();
    EXPECT_EQ(absent.allocate_staging(1000), nullptr);
    EXPECT_FALSE(absent.event_done(1).ok());
  }
}

TEST_F(CudaKind, TouchesNoGpuBeforeMemoryIsRegistered) {
  const fake_cuda::Live before = fake_->live();
  fake_->fail_at(0);
  EXPECT_EQ(kind_.describe(), "its driver is here, and not used yet");
  EXPECT_EQ(fake_->calls(), 0u);
  EXPECT_EQ(fake_->live().of_the_kind(), before.of_the_kind());
}

TEST_F(CudaKind, TakesWhatIsAGpusAndSynchronisesIt) {
  std::byte* const memory = device_.allocate(100000);
  EXPECT_FALSE(fake_->synchronises(reinterpret_cast<uint64_t>(memory)));
  EXPECT_TRUE(kind_.check(memory + 10, 99990).ok());
  EXPECT_TRUE(fake_->synchronises(reinterpret_cast<uint64_t>(memory)));
  EXPECT_NE(kind_.describe().find("small blocks by kernel"), std::string::npos) << kind_.describe();

  std::vector<std::byte> host(100);
  EXPECT_EQ(kind_.check(host.data(), 100).error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(kind_.check(memory, 0).error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(kind_.check(memory + 10, SIZE_MAX - 5).error().code, ErrorCode::invalid_argument);
  // Past the end of the allocation lies nothing, or another GPU's.
  EXPECT_EQ(kind_.check(memory + 10, 100001).error().code, ErrorCode::invalid_argument);
  std::byte* const staging = kind_.allocate_staging(100);
  EXPECT_EQ(kind_.check(staging, 100).error().code, ErrorCode::invalid_argument);
  kind_.free_staging(staging, 100);
}

// Addresses alone say whose they are; a process that has not loaded the driver has no such memory.
TEST_F(CudaKind, KnowsItsMemoryByAddress) {
  const std::byte* const memory = device_.allocate(1000);
  const std::vector<std::byte> host(100);
  EXPECT_TRUE(kind_.owns(memory + 999));
  EXPECT_FALSE(kind_.owns(host.data()));
  std::byte* const staging = kind_.allocate_staging(100);
  EXPECT_FALSE(kind_.owns(staging)) << "page-locked memory is the host's";
  if (staging != nullptr) kind_.free_staging(staging, 100);
  CudaMemory elsewhere({.library = "libkvferry_no_such_driver.so"});
  EXPECT_FALSE(elsewhere.owns(memory));
}

TEST_F(CudaKind, SaysThatAnAllocatorHasNoSyncMemops) {
  fake_->withhold_sync_memops(true);
  EXPECT_TRUE(kind_.check(device_.allocate(1000), 1000).ok());
  EXPECT_NE(kind_.describe().find("1 ranges whose allocator has no SYNC_MEMOPS"), std::string::npos);
}

TEST_F(CudaKind, ForgetsWhereMemoryWasThatCameBackOnAnotherGpu) {
  // Two GPUs in turn, until an address that was the one's is the other's.
  std::byte* address = nullptr;
  {
    CudaDevice first;
    address = first.allocate(8 << 20);
    ASSERT_TRUE(kind_.check(address, 8 << 20).ok());
  }
  CudaDevice second;
  second.allocate(4096);
  std::byte* const again = second.allocate(8 << 20);
  if (again != address) GTEST_SKIP() << "the address was not given out again";
  ASSERT_TRUE(kind_.check(again, 8 << 20).ok());
  std::byte* const staging = kind_.allocate_staging(1000);
  const auto bytes = pattern(1000, 3);
  std::memcpy(staging, bytes.data(), 1000);
  EXPECT_TRUE(copy(kind_, CopyDirection::to_device, {{again, staging, 1000}}).ok());
  kind_.free_staging(staging, 1000);
}

TEST_F(CudaKind, ACopyLandsNoSoonerThanItIsDone) {
  std::byte* const memory = device_.allocate(5000);
  const auto bytes = pattern(5000, 1);
  device_.store(memory, bytes.data(), 5000);
  ASSERT_TRUE(kind_.check(memory, 5000).ok());
  std::byte* const staging = kind_.allocate_staging(5000);
  std::memset(staging, 0, 5000);
  const CopyId id = must(kind_.start_copy(CopyDirection::to_host, std::vector<CopySpan>{{memory, staging, 5000}}));
  EXPECT_FALSE(must(kind_.copy_done(id)));
  EXPECT_EQ(staging[17], std::byte{0});
  EXPECT_TRUE(must(kind_.copy_done(id)));
  EXPECT_EQ(std::memcmp(staging, bytes.data(), 5000), 0);
  EXPECT_EQ(kind_.copy_done(id).error().code, ErrorCode::not_found);
  kind_.free_staging(staging, 5000);
}

TEST_F(CudaKind, RefusesACopyOfWhatIsNoGpusMemory) {
  std::byte* const memory = device_.allocate(5000);
  ASSERT_TRUE(kind_.check(memory, 5000).ok());
  std::byte* const staging = kind_.allocate_staging(9000);
  std::vector<std::byte> host(100);
  EXPECT_FALSE(copy(kind_, CopyDirection::to_host, {{memory, staging, 100}, {host.data(), staging, 100}}).ok());
  EXPECT_FALSE(copy(kind_, CopyDirection::to_host, {{memory, staging, 5001}}).ok());
  kind_.free_staging(staging, 9000);
}

TEST_F(CudaKind, LeavesTheContextOfAForeignThreadAlone) {
  std::byte* const on_first = device_.allocate(5000);
  std::byte* const on_second = device_.allocate(5000);
  const auto driver = must(cuda::Driver::load(cuda_driver()));
  cuda::Context other = nullptr;
  ASSERT_EQ(driver->primary_retain(&other, 1), cuda::kSuccess);
  for (const bool has_one : {false, true}) {
    std::thread([&] {
      std::optional<ContextScope> own;
      if (has_one) own.emplace(*driver, other);
      const cuda::Context before = current_context();
      EXPECT_EQ(before, has_one ? other : nullptr);
      CudaMemory kind(options());
      for (std::byte* memory : {on_first, on_second}) {
        EXPECT_TRUE(kind.check(memory, 5000).ok());
        EXPECT_EQ(current_context(), before);
        std::byte* const staging = kind.allocate_staging(5000);
        const CopyId id = must(kind.start_copy(CopyDirection::to_host, scattered(memory, staging, 10, 100, 200)));
        EXPECT_EQ(current_context(), before);
        EXPECT_TRUE(finish(kind, id).ok());
        const EventId event = device_.create_event();
        EXPECT_FALSE(must(kind.event_done(event)));
        kind.free_staging(staging, 5000);
        EXPECT_EQ(current_context(), before);
      }
    }).join();
  }
  driver->primary_release(1);
}

TEST_F(CudaKind, WaitsForEvents) {
  ASSERT_TRUE(kind_.check(device_.allocate(100), 100).ok());
  const EventId event = device_.create_event();
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(must(kind_.event_done(event)));
  device_.signal(event);
  EXPECT_TRUE(must(kind_.event_done(event)));
  const EventId lost = device_.create_event();
  device_.destroy_event(lost);
  EXPECT_EQ(kind_.event_done(lost).error().code, ErrorCode::not_found);
}

TEST_F(CudaKind, KeepsStagingMemoryForTheNext) {
  ASSERT_TRUE(kind_.check(device_.allocate(100), 100).ok());
  const uint64_t before = fake_->live().pinned;
  for (int i = 0; i < 100; ++i) {
    std::byte* const staging = kind_.allocate_staging(100000 + static_cast<size_t>(i));
    ASSERT_NE(staging, nullptr);
    kind_.free_staging(staging, 100000);
  }
  EXPECT_EQ(fake_->live().pinned, before + 1);
  // No more of it than is ever of use.
  std::vector<std::byte*> many;
  for (int i = 0; i < 10; ++i) many.push_back(kind_.allocate_staging(size_t{16} << 20));
  for (std::byte* staging : many) kind_.free_staging(staging, size_t{16} << 20);
  EXPECT_LE(fake_->live().pinned, before + 5);
}

TEST_F(CudaKind, GivesEverythingBack) {
  const fake_cuda::Live before = fake_->live();
  {
    CudaMemory kind(options());
    for (int gpu = 0; gpu < 2; ++gpu) {
      std::byte* const memory = device_.allocate(100000);
      ASSERT_TRUE(kind.check(memory, 100000).ok());
      std::byte* const staging = kind.allocate_staging(100000);
      EXPECT_TRUE(copy(kind, CopyDirection::to_host, scattered(memory, staging, 100, 100, 1000)).ok());
      // One that nobody waits for.
      EXPECT_TRUE(kind.start_copy(CopyDirection::to_host, scattered(memory, staging, 100, 100, 1000)).ok());
      kind.free_staging(staging, 100000);
    }
    EXPECT_GT(fake_->live().of_the_kind(), before.of_the_kind());
  }
  EXPECT_EQ(fake_->live().of_the_kind(), before.of_the_kind());
}

// ---- many small spans

class CudaGather : public Cuda, public ::testing::WithParamInterface<Gather> {};

TEST_P(CudaGather, BringsSpansTogetherAndSpreadsThem) {
  CudaMemory kind(options(GetParam()));
  // Multiples of 16 and of 4, and what is neither, as to length and to place.
  for (const auto& [length, step, shift] :
       std::vector<std::tuple<size_t, size_t, size_t>>{{512, 1024, 0}, {512, 1028, 4}, {511, 1001, 3}, {1, 2, 1}}) {
    SCOPED_TRACE(length);
    constexpr size_t kCount = 300;
    const size_t size = kCount * step + shift;
    for (int gpu = 0; gpu < 2; ++gpu) {
      std::byte* const memory = device_.allocate(size);
      auto bytes = pattern(size, 7);
      device_.store(memory, bytes.data(), size);
      ASSERT_TRUE(kind.check(memory, size).ok());
      std::byte* const staging = kind.allocate_staging(kCount * length);
      const auto spans = scattered(memory + shift, staging, kCount, length, step);
      ASSERT_TRUE(copy(kind, CopyDirection::to_host, spans).ok());
      for (size_t i = 0; i < kCount; ++i)
        ASSERT_EQ(std::memcmp(staging + i * length, bytes.data() + shift + i * step, length), 0) << i;

      const auto fresh = pattern(kCount * length, 8);
      std::memcpy(staging, fresh.data(), fresh.size());
      ASSERT_TRUE(copy(kind, CopyDirection::to_device, spans).ok());
      for (size_t i = 0; i < kCount; ++i)
        std::memcpy(bytes.data() + shift + i * step, fresh.data() + i * length, length);
      std::vector<std::byte> after(size);
      device_.load(after.data(), memory, size);
      EXPECT_TRUE(after == bytes);  // and nothing between the spans
      kind.free_staging(staging, kCount * length);
    }
  }
}

TEST_P(CudaGather, CallsTheDriverAsOftenAsItSays) {
  CudaMemory kind(options(GetParam()));
  std::byte* const memory = device_.allocate(size_t{4} << 20);
  ASSERT_TRUE(kind.check(memory, size_t{4} << 20).ok());
  std::byte* const staging = kind.allocate_staging(size_t{4} << 20);
  const auto counts = [&] { return std::vector<uint64_t>{fake_->launches(), fake_->batches(), fake_->copies()}; };
  const auto made = [&](const std::vector<CopySpan>& spans) {
    const auto before = counts();
    EXPECT_TRUE(copy(kind, CopyDirection::to_host, spans).ok());
    auto after = counts();
    for (size_t i = 0; i < after.size(); ++i) after[i] -= before[i];
    return after;
  };
  using Counts = std::vector<uint64_t>;
  const Counts small = GetParam() == Gather::kernel  ? Counts{1, 0, 0}
                       : GetParam() == Gather::batch ? Counts{0, 1, 0}
                                                     : Counts{0, 0, 100};
  EXPECT_EQ(made(scattered(memory, staging, 100, 1000, 2000)), small);
  // What is large, few, or not in staging memory goes span by span.
  EXPECT_EQ(made(scattered(memory, staging, 10, 200000, 300000)), (Counts{0, 0, 10}));
  EXPECT_EQ(made(scattered(memory, staging, 2, 1000, 2000)), (Counts{0, 0, 2}));
  std::vector<std::byte> pageable(100000);
  EXPECT_EQ(made(scattered(memory, pageable.data(), 100, 1000, 2000)), (Counts{0, 0, 100}));
  kind.free_staging(staging, size_t{4} << 20);
}

INSTANTIATE_TEST_SUITE_P(All, CudaGather, ::testing::Values(Gather::kernel, Gather::batch, Gather::single),
                         [](const auto& tested) { return std::string(to_string(tested.param)); });

TEST_F(CudaKind, DoesWithoutTheKernelThatADriverRefuses) {
  fake_->refuse_kernels(true);
  ASSERT_TRUE(kind_.check(device_.allocate(100), 100).ok());
  const std::string text = kind_.describe();
  EXPECT_NE(text.find("small blocks by batch (the driver refuses the kernel: CUDA_ERROR_INVALID_IMAGE"),
            std::string::npos)
      << text;
  CudaMemory bare({cuda_driver(), Gather::automatic, {}});
  ASSERT_TRUE(bare.check(device_.allocate(100), 100).ok());
  EXPECT_NE(bare.describe().find("(built without nvcc: there is no kernel)"), std::string::npos) << bare.describe();
}

}  // namespace
}  // namespace kvferry::test
