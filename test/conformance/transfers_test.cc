#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include "test/conformance/conformance.h"
#include "test/support/eventually.h"

// Bytes: every size, offset, number of pairs, order and company.

namespace kvferry::test {
namespace {

using std::chrono::seconds;

class Transfers : public Conformance {};

TEST_P(Transfers, MovesOneSpanOfEverySize) {
  make_memory((size_t{8} << 20) + 14);
  for (const size_t size :
       {size_t{1}, size_t{7}, size_t{4095}, size_t{4096}, size_t{65537}, (size_t{128} << 10) + 1,
        (size_t{512} << 10) + 3, (size_t{1} << 20) + 1, (size_t{4} << 20) + 5, (size_t{8} << 20) + 1}) {
    SCOPED_TRACE(size);
    check(Operation::read, {pair(5, 11, size)});
    check(Operation::write, {pair(13, 3, size)});
  }
}

TEST_P(Transfers, MovesLargeSpans) {
  const bool by_host = GetParam().initiator == MemoryKind::host && GetParam().owner == MemoryKind::host && !emulated();
  for (const size_t size : {size_t{64} << 20, size_t{256} << 20}) {
    if (size > largest_test_bytes() || (!by_host && size > size_t{64} << 20)) continue;
    make_memory(size);
    for (const Operation operation : kBoth) check(operation, {pair(0, 0, size)});
  }
}

TEST_P(Transfers, MovesManyPairsInAnyOrder) {
  constexpr size_t kBlock = 129;  // odd, so that neither side is aligned
  for (const size_t count : {size_t{1}, size_t{2}, size_t{255}, size_t{513}, size_t{4097}, size_t{65536}}) {
    SCOPED_TRACE(count);
    make_memory(count * kBlock + 7);
    std::vector<size_t> places(count);
    for (size_t i = 0; i < count; ++i) places[i] = i;
    std::shuffle(places.begin(), places.end(), std::mt19937_64(count));
    for (const Operation operation : kBoth) {
      std::vector<Pair> pairs;
      for (size_t i = 0; i < count; ++i) pairs.push_back(pair(7 + i * kBlock, 3 + places[i] * kBlock, kBlock - i % 3));
      check(operation, pairs);
    }
  }
}

TEST_P(Transfers, MovesPairsOfVeryDifferentLengths) {
  make_memory(size_t{9} << 20);
  std::mt19937_64 random(5);
  for (const Operation operation : kBoth) {
    std::vector<Pair> pairs;
    uint64_t local = 0;
    uint64_t remote = size_t{9} << 20;
    while (true) {
      const uint64_t length = uint64_t{1} << (random() % 21);
      if (local + length + 3 > (size_t{9} << 20) || length + 5 > remote) break;
      remote -= length + 5;
      pairs.push_back(pair(local, remote, length));
      local += length + 3;
    }
    ASSERT_GT(pairs.size(), 10u);
    check(operation, pairs);
  }
}

TEST_P(Transfers, ReadsOverlappingSpansAndWritesFromThem) {
  make_memory(size_t{4} << 20);
  std::vector<Pair> reads;
  std::vector<Pair> writes;
  for (uint64_t i = 0; i < 300; ++i) {
    reads.push_back(pair(i * 8192, i * 100, 8000));   // the owner's spans overlap
    writes.push_back(pair(i * 100, i * 8192, 8000));  // ours do
  }
  check(Operation::read, reads);
  check(Operation::write, writes);
}

TEST_P(Transfers, TouchesTwoRegionsOfEitherSideInOneTransfer) {
  make_memory(size_t{1} << 20);
  Buffer ours = make_buffer(GetParam().initiator, 70000);
  Buffer theirs = make_buffer(GetParam().owner, 70000);
  const Region our_region = must(initiator_->register_memory(ours.base(), 70000, ours.kind(), kPrivate));
  const Region their_region = must(owner_->register_memory(theirs.base(), 70000, theirs.kind(), kRemoteReadWrite));
  theirs.store(pattern(70000, 9));
  const Outcome read = run(Operation::read, {pair(0, 1, 50000),
                                             {ours.base() + 1, their_region.id(), 2, 60000},
                                             {local_->base() + 60000, their_region.id(), 0, 333},
                                             {ours.base() + 65000, remote_region_.id(), 5, 10}});
  ASSERT_TRUE(read.status.ok()) << read.status.error().to_string();
  const auto remote = remote_->load();
  const auto there = theirs.load();
  const auto here = ours.load();
  const auto local = local_->load();
  EXPECT_TRUE(std::equal(local.begin(), local.begin() + 50000, remote.begin() + 1));
  EXPECT_TRUE(std::equal(here.begin() + 1, here.begin() + 60001, there.begin() + 2));
  EXPECT_TRUE(std::equal(local.begin() + 60000, local.begin() + 60333, there.begin()));
  EXPECT_TRUE(std::equal(here.begin() + 65000, here.begin() + 65010, remote.begin() + 5));
  const Outcome write =
      run(Operation::write, {pair(100, 100, 100), {ours.base() + 1000, their_region.id(), 3000, 60000}});
  ASSERT_TRUE(write.status.ok()) << write.status.error().to_string();
  const auto after = theirs.load();
  EXPECT_TRUE(std::equal(after.begin() + 3000, after.begin() + 63000, here.begin() + 1000));
}

TEST_P(Transfers, MovesBytesToItself) {
  make_memory(size_t{3} << 20);
  const PeerRef self = must(owner_->peer(owner_->address()));
  Buffer target = make_buffer(GetParam().initiator, size_t{3} << 20);
  const Region region = must(owner_->register_memory(target.base(), target.size(), target.kind(), kRemoteReadWrite));
  for (const Operation operation : kBoth) {
    TransferRequest asked;
    asked.peer = self;
    asked.operation = operation;
    asked.pairs = {{target.base() + 1, remote_region_.id(), 7, (size_t{2} << 20) + 1}};
    if (operation == Operation::write) target.store(pattern(target.size(), 77));
    const Outcome outcome = owner_->transfer(asked);
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
    const auto mine = target.load();
    const auto other = remote_->load();
    EXPECT_TRUE(std::equal(mine.begin() + 1, mine.begin() + 1 + (2 << 20) + 1, other.begin() + 7))
        << name_of(operation);
  }
}

TEST_P(Transfers, ServesManyThreadsAtOnce) {
  constexpr size_t kThreads = 8;
  constexpr size_t kRounds = 20;
  constexpr size_t kArea = size_t{1} << 20;
  make_memory(kThreads * kArea);
  std::atomic<size_t> failures{0};
  std::vector<std::byte> expected = local_->load();
  std::vector<std::byte> theirs = remote_->load();
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (size_t round = 0; round < kRounds; ++round) {
        const uint64_t length = 1 + random() % (round % 2 == 0 ? 9000 : kArea / 2);
        const uint64_t from = random() % (kArea - length);
        const uint64_t to = random() % (kArea - length);
        const Pair one = pair(t * kArea + to, t * kArea + from, length);
        if (round % 3 == 0) {
          if (!run(Operation::write, {one}).status.ok()) ++failures;
          std::memcpy(theirs.data() + t * kArea + from, expected.data() + t * kArea + to, length);
        } else {
          if (!run(Operation::read, {one}).status.ok()) ++failures;
          std::memcpy(expected.data() + t * kArea + to, theirs.data() + t * kArea + from, length);
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures.load(), 0u);
  EXPECT_TRUE(local_->holds(expected));
  EXPECT_TRUE(remote_->holds(theirs));
}

TEST_P(Transfers, KeepsManyInFlight) {
  constexpr size_t kCount = 500;
  make_memory(kCount * 1000);
  for (const Operation operation : kBoth) {
    std::vector<Transfer> all;
    for (size_t i = 0; i < kCount; ++i)
      all.push_back(must(initiator_->submit(request(operation, {pair(i * 1000, (kCount - 1 - i) * 1000, 1000)}))));
    for (const Transfer& transfer : all) ASSERT_TRUE(transfer.wait().status.ok());
    const auto ours = local_->load();
    const auto theirs = remote_->load();
    for (size_t i = 0; i < kCount; ++i)
      ASSERT_EQ(std::memcmp(ours.data() + i * 1000, theirs.data() + (kCount - 1 - i) * 1000, 1000), 0) << i;
  }
}

// I8: what a notification announces can be seen when it is taken.
TEST_P(Transfers, DeliversNotificationsAfterTheirData) {
  make_memory(size_t{2} << 20);
  for (uint8_t round = 1; round <= 20; ++round) {
    const size_t length = round % 2 == 0 ? 3000 : (size_t{2} << 20) - 9;
    local_->store(std::vector<std::byte>(local_->size(), std::byte{round}));
    TransferRequest asked = request(Operation::write, {pair(4, 9, length)});
    asked.notify = Notification{"round", std::to_string(round)};
    const Transfer transfer = must(initiator_->submit(std::move(asked)));
    std::vector<ReceivedNotification> got;
    ASSERT_TRUE(eventually([&] { return !(got = owner_->notifications()).empty(); }));
    const auto theirs = remote_->load();
    EXPECT_EQ(std::count(theirs.begin() + 9, theirs.begin() + 9 + static_cast<ptrdiff_t>(length), std::byte{round}),
              static_cast<ptrdiff_t>(length));
    ASSERT_EQ(got.size(), 1u);
    EXPECT_EQ(got[0].from, "initiator");
    EXPECT_EQ(got[0].notification.name, "round");
    EXPECT_EQ(got[0].notification.payload, std::to_string(round));
    ASSERT_TRUE(transfer.wait().status.ok());
  }
}

TEST_P(Transfers, DeliversNotificationsAloneInTheirOrder) {
  for (int i = 0; i < 300; ++i) static_cast<void>(must(initiator_->notify(peer_, {"n", std::to_string(i)})));
  std::vector<ReceivedNotification> all;
  ASSERT_TRUE(eventually([&] {
    for (ReceivedNotification& one : owner_->notifications()) all.push_back(std::move(one));
    return all.size() >= 300;
  }));
  for (size_t i = 0; i < all.size(); ++i) ASSERT_EQ(all[i].notification.payload, std::to_string(i));
}

TEST_P(Transfers, DoesNotLoseItsSessionToABurstOfLargeNotifications) {
  const std::string payload(size_t{500} << 10, 'x');
  std::vector<Transfer> all;
  for (int i = 0; i < 64; ++i) all.push_back(must(initiator_->notify(peer_, {"large", payload})));
  size_t delivered = 0;
  for (const Transfer& one : all) {
    const Outcome outcome = one.wait();
    delivered += outcome.status.ok();
    if (outcome.status.ok()) continue;
    EXPECT_EQ(outcome.status.error().code, ErrorCode::resource_exhausted) << outcome.status.error().to_string();
  }
  EXPECT_GT(delivered, 0u);
  EXPECT_EQ(owner_->notifications().size(), delivered);
}

TEST_P(Transfers, UsesARegionAtOnceThatWasRegisteredWhileTheSessionStands) {
  make_memory(10000);
  check(Operation::read, {pair(0, 0, 10000)});
  for (int i = 0; i < 50; ++i) {
    Buffer fresh = make_buffer(GetParam().owner, 5000);
    fresh.store(pattern(5000, static_cast<uint64_t>(i)));
    Region region = must(owner_->register_memory(fresh.base(), 5000, fresh.kind(), kRemoteRead));
    const Outcome outcome = run(Operation::read, {{local_->base(), region.id(), 0, 5000}});
    ASSERT_TRUE(outcome.status.ok()) << i << ": " << outcome.status.error().to_string();
    const auto ours = local_->load();
    ASSERT_TRUE(std::equal(ours.begin(), ours.begin() + 5000, pattern(5000, static_cast<uint64_t>(i)).begin()));
    ASSERT_TRUE(region.unregister().ok());
    const Outcome after = run(Operation::read, {{local_->base(), region.id(), 0, 5000}});
    ASSERT_FALSE(after.status.ok());
    EXPECT_EQ(after.status.error().code, ErrorCode::not_found) << after.status.error().to_string();
  }
}

TEST_P(Transfers, KnowsThePeerOnceConnected) {
  make_memory(4096);
  ASSERT_TRUE(peer_.connect(seconds(20)).ok());
  EXPECT_EQ(peer_.engine_id(), "owner");
  EXPECT_NE(peer_.incarnation(), 0u);
  ASSERT_EQ(peer_.regions().size(), 1u);
  const auto base = reinterpret_cast<uint64_t>(remote_->base());
  const auto found = peer_.find_address(base + 100, 96);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->id, remote_region_.id());
  EXPECT_FALSE(peer_.find_address(base + 4000, 97).has_value());
}

INSTANTIATE_TEST_SUITE_P(Fabrics, Transfers, kAllCases, case_name);

}  // namespace
}  // namespace kvferry::test
