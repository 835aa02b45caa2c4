#include <gtest/gtest.h>

#include "test/support/engines.h"
#include "test/support/free_port.h"

// Spans of a peer by its addresses, and what a restart of the peer does to them (I5).

namespace kvferry::test {
namespace {

constexpr auto kPatience = std::chrono::seconds(40);

class Addresses : public ::testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Engine> make_engine(const std::string& name, const std::string& listen = "127.0.0.1:0") {
    EngineConfig config;
    config.engine_id = name;
    config.listen = listen;
    config.fabrics = {GetParam()};
    config.missed_heartbeats = 60;
    config.connect_timeout = kPatience;
    return must(Engine::create(config));
  }
  static uint64_t at(const std::vector<std::byte>& memory, size_t offset) {
    return reinterpret_cast<uint64_t>(memory.data() + offset);
  }
};

INSTANTIATE_TEST_SUITE_P(Fabrics, Addresses, ::testing::Values("local", "tcp"));

TEST_P(Addresses, BecomeSpansOfTheRegionsThatHoldThem) {
  auto initiator = make_engine("initiator");
  auto owner = make_engine("owner");
  std::vector<std::byte> first(4096), second(8192);
  const Region a = must(owner->register_memory(first.data(), first.size(), MemoryKind::host, kRemoteRead));
  const Region b = must(owner->register_memory(second.data(), second.size(), MemoryKind::host, kRemoteRead));
  const PeerRef peer = must(initiator->peer(owner->address()));
  ASSERT_TRUE(peer.connect(kPatience).ok());

  const std::vector<uint64_t> addresses = {at(second, 100), at(first, 0), at(second, 8191)};
  std::vector<Pair> pairs(3);
  pairs[0].length = 1000;
  pairs[1].length = 4096;
  pairs[2].length = 1;
  EXPECT_EQ(must(peer.locate(addresses, pairs)), peer.incarnation());
  EXPECT_EQ(pairs[0].region, b.id());
  EXPECT_EQ(pairs[0].offset, 100u);
  EXPECT_EQ(pairs[1].region, a.id());
  EXPECT_EQ(pairs[1].offset, 0u);
  EXPECT_EQ(pairs[2].region, b.id());
  EXPECT_EQ(pairs[2].offset, 8191u);

  pairs[2].length = 2;
  const auto beyond = peer.locate(addresses, pairs);
  ASSERT_FALSE(beyond.ok());
  EXPECT_EQ(beyond.error().code, ErrorCode::not_found);
}

TEST_P(Addresses, RegisteredBeforeSyncAreKnownAfterIt) {
  auto initiator = make_engine("initiator");
  auto owner = make_engine("owner");
  const PeerRef peer = must(initiator->peer(owner->address()));
  ASSERT_TRUE(peer.connect(kPatience).ok());
  std::vector<std::vector<std::byte>> memory(50, std::vector<std::byte>(64));
  std::vector<Region> regions;
  for (const auto& bytes : memory) {
    regions.push_back(must(
        owner->register_memory(const_cast<std::byte*>(bytes.data()), bytes.size(), MemoryKind::host, kRemoteRead)));
    ASSERT_TRUE(peer.sync(kPatience).ok());
    EXPECT_TRUE(peer.find_address(at(bytes, 0), bytes.size()).has_value());
  }
}

// The layers of one tensor, each registered by itself: neighbours in memory, and two regions all the same.
TEST_P(Addresses, OfLocalRegionsThatTouchAreMovedByOneTransfer) {
  auto initiator = make_engine("initiator");
  auto owner = make_engine("owner");
  std::vector<std::byte> local(8192), remote = pattern(8192, 3);
  const Region low = must(initiator->register_memory(local.data(), 4096, MemoryKind::host, kPrivate));
  const Region high = must(initiator->register_memory(local.data() + 4096, 4096, MemoryKind::host, kPrivate));
  const Region theirs = must(owner->register_memory(remote.data(), remote.size(), MemoryKind::host, kRemoteRead));
  TransferRequest request;
  request.peer = must(initiator->peer(owner->address()));
  request.operation = Operation::read;
  request.pairs = {{local.data(), theirs.id(), 0, 4096}, {local.data() + 4096, theirs.id(), 4096, 4096}};
  const Outcome outcome = initiator->transfer(request);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
  EXPECT_EQ(local, remote);
}

TEST_P(Addresses, OfAnEarlierIncarnationMoveNothing) {
  const std::string address = free_address();  // the next life is there, too
  auto initiator = make_engine("initiator");
  auto owner = make_engine("owner", address);
  std::vector<std::byte> local(64), before(64), after(64);
  const Region mine = must(initiator->register_memory(local.data(), local.size(), MemoryKind::host, kPrivate));
  Region theirs = must(owner->register_memory(before.data(), before.size(), MemoryKind::host, kRemoteReadWrite));
  const PeerRef peer = must(initiator->peer(address));
  ASSERT_TRUE(peer.connect(kPatience).ok());

  TransferRequest request;
  request.peer = peer;
  request.operation = Operation::write;
  request.pairs = {{local.data(), 0, 0, local.size()}};
  const uint64_t target = at(before, 0);
  request.incarnation = must(peer.locate({&target, 1}, request.pairs));
  const std::vector<std::byte> sent = pattern(64, 1);
  std::copy(sent.begin(), sent.end(), local.begin());
  ASSERT_TRUE(initiator->transfer(request).status.ok());

  [[maybe_unused]] const Status gone = theirs.unregister();
  owner.reset();
  owner = make_engine("owner", address);
  theirs = must(owner->register_memory(after.data(), after.size(), MemoryKind::host, kRemoteReadWrite));
  while (peer.incarnation() == request.incarnation || !peer.connect(kPatience).ok()) {
  }
  const Outcome outcome = initiator->transfer(request);
  ASSERT_FALSE(outcome.status.ok());
  EXPECT_EQ(outcome.status.error().code, ErrorCode::peer_lost);
  EXPECT_EQ(after, std::vector<std::byte>(64));
}

}  // namespace
}  // namespace kvferry::test
