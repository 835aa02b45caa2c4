#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "common/random.h"
#include "engine/memory/fake_device.h"
#include "engine/memory/region_table.h"
#include "engine/memory/registry.h"
#include "engine/memory/staging.h"
#include "test/support/manual_loop.h"

namespace kvferry {
namespace {

class RegistryTest : public ::testing::Test {
 protected:
  static MemoryKinds host_only() {
    MemoryKinds kinds;
    kinds.add(make_host_memory());
    return kinds;
  }
  Result<RegionInfo> add(size_t from, size_t length, uint32_t permissions = kRemoteRead) {
    return registry_.add(memory_.data() + from, length, MemoryKind::host, permissions);
  }
  std::unique_ptr<GateWords> words_ = std::move(GateWords::create()).value();
  Registry registry_{host_only(), *words_, 20000, 100};
  std::vector<std::byte> memory_ = std::vector<std::byte>(100000);
};

TEST_F(RegistryTest, RefusesOverlapsAndTakesNeighbours) {
  ASSERT_TRUE(add(1000, 1000).ok());
  for (const auto& [from, length] :
       std::vector<std::pair<size_t, size_t>>{{1000, 1000}, {999, 2}, {1999, 1}, {1500, 10}, {0, 5000}, {0, 1001}}) {
    const auto refused = add(from, length);
    ASSERT_FALSE(refused.ok()) << from;
    EXPECT_EQ(refused.error().code, ErrorCode::already_exists);
  }
  EXPECT_TRUE(add(0, 1000).ok());
  EXPECT_TRUE(add(2000, 1).ok());
}

TEST_F(RegistryTest, CountsIdsUpFromTheFirst) {
  EXPECT_EQ(add(0, 10)->id, 100u);
  EXPECT_EQ(add(10, 10)->id, 101u);
}

TEST_F(RegistryTest, QuarantinesUntilForgotten) {
  const RegionInfo info = *add(1000, 1000);
  EXPECT_EQ(words_->load(info.word), info.id);
  RegionPin pin = std::move(registry_.pin_local(memory_.data() + 1100, 10)).value();
  const auto region = std::move(registry_.begin_close(info.id)).value();
  EXPECT_EQ(words_->load(info.word), 0u);
  EXPECT_EQ(region->pins.load(), 1u);
  pin.release();
  EXPECT_EQ(region->pins.load(), 0u);
  EXPECT_FALSE(registry_.pin_local(memory_.data() + 1100, 10).ok());
  EXPECT_EQ(registry_.pin_remote(info.id, kRemoteRead).error().code, ErrorCode::not_found);
  EXPECT_EQ(add(1500, 1000).error().code, ErrorCode::not_quiet);
  EXPECT_EQ(registry_.quarantined(), 1u);
  EXPECT_EQ(registry_.begin_close(info.id).error().code, ErrorCode::not_found);
  registry_.forget(*region);
  EXPECT_EQ(registry_.quarantined(), 0u);
  const auto again = add(1500, 1000);
  ASSERT_TRUE(again.ok());
  EXPECT_NE(again->id, info.id);
}

TEST_F(RegistryTest, PinsOnlyWhatIsOpen) {
  const RegionInfo info = *add(1000, 1000, kRemoteRead);
  EXPECT_TRUE(registry_.pin_remote(info.id, kRemoteRead).ok());
  EXPECT_EQ(registry_.pin_remote(info.id, kRemoteWrite).error().code, ErrorCode::permission_denied);
  EXPECT_EQ(registry_.pin_remote(info.id, kRemoteReadWrite).error().code, ErrorCode::permission_denied);
  EXPECT_TRUE(registry_.pin_local(memory_.data() + 1000, 1000).ok());
  EXPECT_FALSE(registry_.pin_local(memory_.data() + 1000, 1001).ok());
  EXPECT_FALSE(registry_.pin_local(memory_.data() + 999, 2).ok());
  EXPECT_FALSE(registry_.pin_local(memory_.data() + 1500, UINT64_MAX).ok());
}

// For devices that are chosen by it: nobody else pays for the look-up.
TEST_F(RegistryTest, KnowsWhereMemoryIsOnceThereIsATopology) {
  struct Mapper final : RegionMapper {
    const char* fabric() const override { return "any"; }
    Result<Mapping> map(const FabricRange&) override { return Mapping{nullptr, ""}; }
    void unmap(void*) override {}
  } mapper;
  registry_.add_mapper(&mapper);
  ASSERT_TRUE(add(0, 1000).ok());
  EXPECT_EQ((*registry_.pin_local(memory_.data(), 10))->place.numa_node, -1);
  registry_.set_topology(std::make_shared<Topology>());
  ASSERT_TRUE(add(1000, 1000).ok());
  EXPECT_EQ((*registry_.pin_local(memory_.data() + 1000, 10))->place.numa_node,
            place_of_memory(memory_.data() + 1000).numa_node);
}

// A copy of the table that follows the changes is the table.
TEST_F(RegistryTest, TellsChangesThatAddUpToTheTable) {
  std::shared_ptr<const RegionTable> copy = std::make_shared<RegionTable>();
  uint64_t version = 0;
  std::vector<RegionId> live;
  SeededRandom random(5);
  bool reset_again = false;
  for (int round = 0; round < 300; ++round) {
    const int steps = round == 150 ? 9000 : 1 + static_cast<int>(random.below(6));  // once more than the log keeps
    for (int step = 0; step < steps; ++step) {
      if (const auto added = add(random.below(9990) * 10, 10)) live.push_back(added->id);
      if (live.size() > 1000 || (live.size() > 3 && random.below(2) == 0)) {
        const auto at = live.begin() + static_cast<ptrdiff_t>(random.below(live.size()));
        registry_.forget(**registry_.begin_close(*at));
        live.erase(at);
      }
    }
    const Registry::Changes changes = registry_.changes_since(version);
    reset_again |= changes.reset && version != 0;
    copy = RegionTable::next(changes.reset ? RegionTable() : *copy, changes.added, changes.removed);
    version = changes.version;
    const auto truth = registry_.snapshot();
    ASSERT_EQ(copy->regions().size(), truth.size());
    for (const RegionInfo& region : truth) {
      ASSERT_NE(copy->find(region.id), nullptr);
      ASSERT_EQ(copy->find_address(region.base, region.length)->id, region.id);
    }
  }
  EXPECT_TRUE(reset_again);
}

TEST(RegionTableTest, FindsByIdAndAddress) {
  const std::vector<RegionInfo> regions = {{9, MemoryKind::host, 1, 0, 5000, 100},
                                           {3, MemoryKind::host, 1, 1, 100, 50}};
  const auto table = RegionTable::next(RegionTable(), regions, {});
  EXPECT_EQ(table->find(9)->base, 5000u);
  EXPECT_EQ(table->find(4), nullptr);
  EXPECT_EQ(table->find_address(149, 1)->id, 3u);
  EXPECT_EQ(table->find_address(149, 2), nullptr);
  EXPECT_EQ(table->find_address(99, 1), nullptr);
  EXPECT_EQ(table->find_address(5000, 100)->id, 9u);
  EXPECT_EQ(table->find_address(5001, UINT64_MAX), nullptr);
  const std::vector<RegionId> removed = {9};
  EXPECT_EQ(RegionTable::next(*table, {}, removed)->regions().size(), 1u);
}

// What arrives is taken whatever the budget, and answers to others must still go out: else two engines that read from
// each other have all of theirs taken for answers that neither can give.
TEST(StagingTest, GrantsOneBufferWhateverIsTakenBesides) {
  test::ManualLoop loop;
  FakeDevice device;
  Staging staging(loop, 100);
  const auto taken = staging.take_now(device, 200);
  ASSERT_TRUE(taken.ok());
  std::vector<Staging::Buffer> granted;
  const auto keep = [&](Result<Staging::Buffer> buffer) { granted.push_back(std::move(buffer).value()); };
  staging.acquire(device, 50, keep);
  EXPECT_EQ(granted.size(), 1u);
  staging.acquire(device, 50, keep);
  ASSERT_EQ(granted.size(), 1u);
  std::exchange(granted, {}).clear();
  EXPECT_EQ(granted.size(), 1u);
}

TEST(StagingTest, ServesTheNextWhenThereIsNoMemoryForOne) {
  struct Scarce final : FakeDevice {
    std::byte* allocate_staging(size_t length) override {
      return length > 100 ? nullptr : FakeDevice::allocate_staging(length);
    }
  };
  test::ManualLoop loop;
  Scarce device;
  Staging staging(loop, 100);
  std::vector<bool> served;
  std::vector<Staging::Buffer> granted;
  const auto note = [&](Result<Staging::Buffer> buffer) {
    served.push_back(buffer.ok());
    if (buffer) granted.push_back(std::move(buffer).value());
  };
  for (const size_t length : {80u, 200u, 40u}) staging.acquire(device, length, note);
  ASSERT_EQ(served, std::vector<bool>{true});
  std::exchange(granted, {}).clear();
  EXPECT_EQ(served, (std::vector<bool>{true, false, true}));
}

// An event whose transfer is over may be destroyed: it is not looked at any more.
TEST(StagingTest, LooksAtAnEventUntilTheHandleIsDropped) {
  test::ManualLoop loop;
  FakeDevice device;
  Staging staging(loop, 1 << 20);
  int kept = 0, dropped = 0;
  const EventId first = device.create_event(), second = device.create_event();
  const Staging::Watch watch =
      staging.when(device, first, [&](const Status& status) { kept += status.ok() ? 1 : 100; });
  Staging::Watch over = staging.when(device, second, [&](const Status&) { ++dropped; });
  loop.advance(std::chrono::seconds(1));
  over.reset();
  device.destroy_event(second);
  loop.advance(std::chrono::seconds(1));
  EXPECT_EQ(kept, 0);
  device.signal(first);
  loop.advance(std::chrono::seconds(1));
  EXPECT_EQ(kept, 1);
  EXPECT_EQ(dropped, 0);
}

TEST(GateTest, WordsHoldTheirGenerationUntilClosed) {
  const auto words = std::move(GateWords::create()).value();
  const WordIndex first = *words->open(77);
  const WordIndex second = *words->open(78);
  EXPECT_NE(first, second);
  EXPECT_EQ(words->load(first), 77u);
  words->close(first);
  EXPECT_EQ(words->load(first), 0u);
  EXPECT_EQ(words->load(second), 78u);
  words->free(first);
  EXPECT_EQ(*words->open(79), first);
}

TEST(GateTest, SlotsAreSeenByTheOtherMapping) {
  const UniqueFd fd = std::move(GateSlots::create_fd()).value();
  GateSlots writer = std::move(GateSlots::map(fd.get())).value();
  GateSlots owner = std::move(GateSlots::map(fd.get())).value();
  EXPECT_FALSE(owner.any_marked());
  const int slot = writer.mark(0);
  EXPECT_TRUE(owner.marked(0));
  EXPECT_FALSE(owner.marked(1));
  writer.clear(slot);
  EXPECT_FALSE(owner.any_marked());
  for (size_t i = 0; i < GateSlots::kWriters; ++i) EXPECT_GE(writer.mark(5), 0);
  EXPECT_EQ(writer.mark(5), -1);
  for (size_t i = 0; i < GateSlots::kMappings; ++i) EXPECT_GE(writer.mark_mapping(7), 0);
  EXPECT_EQ(writer.mark_mapping(7), -1);
  EXPECT_TRUE(owner.marked(7));
  owner.clear_all();
  EXPECT_GE(writer.mark(6), 0);
}

TEST(GateTest, RefusesSharedMemoryOfAnotherSize) {
  const UniqueFd fd = std::move(GateSlots::create_fd()).value();
  EXPECT_FALSE(SharedMapping::map(fd.get(), GateSlots::kBytes * 2, true).ok());
  EXPECT_FALSE(SharedMapping::map(fd.get(), GateSlots::kBytes / 2, true).ok());
}

// The gate's promise: once the word is closed and no slot names it, nobody is inside, and nobody comes in.
TEST(GateTest, NoWriterIsInsideOnceTheOwnerHasSeenItQuiet) {
  const auto words = std::move(GateWords::create()).value();
  const UniqueFd fd = std::move(GateSlots::create_fd()).value();
  GateSlots writer = std::move(GateSlots::map(fd.get())).value();
  GateSlots owner = std::move(GateSlots::map(fd.get())).value();
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> generation{0};
  std::atomic<int> inside{0};
  std::atomic<uint64_t> entries{0};
  const WordIndex word = *words->open(1);
  generation.store(1);
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t)
    threads.emplace_back([&] {
      while (!stop.load()) {
        const uint64_t believed = generation.load();
        const int slot = writer.mark(word);
        if (words->load(word) == believed) {
          inside.fetch_add(1);
          entries.fetch_add(1);
          inside.fetch_sub(1);
        }
        writer.clear(slot);
        if (generation.load() == believed && words->load(word) != believed) std::this_thread::yield();  // closed
      }
    });
  for (uint64_t round = 2; round < 1000; ++round) {
    words->close(word);
    while (owner.marked(word)) std::this_thread::yield();
    ASSERT_EQ(inside.load(), 0);
    words->free(word);
    ASSERT_EQ(*words->open(round), word);
    const uint64_t before = entries.load();
    generation.store(round);
    while (entries.load() == before) std::this_thread::yield();  // each round has writers to keep out
  }
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace kvferry
