#include <dlfcn.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "engine/fabric/plugin_abi.h"
#include "test/conformance/null_engine.h"
#include "test/support/raw_peer.h"

// What the engine makes of the answers that a plug-in may give (test/support/null_fabric). Nothing moves: that
// a transfer is done, and what it counts, is all that there is to see.

namespace kvferry::test {
namespace {

constexpr size_t kReadBytes = size_t{1} << 20;

class NullFabric : public ::testing::Test {
 protected:
  static std::unique_ptr<Engine> make(const char* name, const std::vector<FabricSetting>& settings = {}) {
    EngineConfig config = null_config(name);
    config.fabric_settings = settings;
    return must(Engine::create(config));
  }
  void start(const char* setting, const char* value) {
    owner_ = make("owner");
    initiator_ = make("initiator", {{"ucx", setting, value}});
    region_.emplace(must(owner_->register_memory(theirs_.data(), kReadBytes, MemoryKind::host, kRemoteRead)));
    landing_.emplace(must(initiator_->register_memory(ours_.data(), kReadBytes, MemoryKind::host, kPrivate)));
  }

  Outcome read() { return read(*region_, kReadBytes); }
  Outcome read(const Region& region, uint64_t length) {
    TransferRequest asked;
    asked.peer = must(initiator_->peer(owner_->address()));
    asked.operation = Operation::read;
    asked.pairs = {{ours_.data(), region.id(), 0, length}};
    asked.timeout = std::chrono::seconds(60);
    return initiator_->transfer(std::move(asked));
  }

  std::vector<std::byte> theirs_ = std::vector<std::byte>(kReadBytes);
  std::vector<std::byte> ours_ = std::vector<std::byte>(kReadBytes);
  std::unique_ptr<Engine> owner_, initiator_;
  std::optional<Region> region_, landing_;
};

TEST_F(NullFabric, ThatTakesNothingNowIsAskedAgain) {
  start("BUSY", "1000");
  const Outcome outcome = read();
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
  EXPECT_EQ(outcome.bytes_done, kReadBytes);
}

// What ends between the last look and the arming of the descriptor wakes nobody, over verbs at least.
TEST_F(NullFabric, IsLookedAtOnceMoreBehindTheArming) {
  start("LATE", "100");
  for (int round = 0; round < 100; ++round) {
    const Outcome outcome = read();
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
  }
}

// Several rails give each region several long keys, and a frame of the session holds 1 MiB.
TEST_F(NullFabric, TellsOfManyRegionsWithLongKeys) {
  owner_ = make("owner", {{"ucx", "KEY_BYTES", "1000"}});
  initiator_ = make("initiator");
  landing_.emplace(must(initiator_->register_memory(ours_.data(), kReadBytes, MemoryKind::host, kPrivate)));
  std::vector<Region> regions;
  for (size_t i = 0; i < 2500; ++i)
    regions.push_back(must(owner_->register_memory(theirs_.data() + i * 64, 64, MemoryKind::host, kRemoteRead)));
  const Outcome outcome = read(regions.back(), 64);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
}

// Which of them is near is the one thing that hwloc is asked for.
TEST_F(NullFabric, LoadsHwlocForSeveralRailsAlone) {
  const auto is_loaded = [] { return ::dlopen(kHwloc, RTLD_NOW | RTLD_NOLOAD) != nullptr; };
  if (is_loaded()) GTEST_SKIP() << "another case has loaded it: in ctest each has a process of its own";
  start("KEY_BYTES", "10");
  ASSERT_TRUE(read().status.ok());
  EXPECT_FALSE(is_loaded());
  EngineConfig config = null_config("with rails");
  config.rdma_hosts = {"127.0.0.1", "127.0.0.2"};
  owner_ = must(Engine::create(config));
  initiator_ = must(Engine::create(config));
  region_.emplace(must(owner_->register_memory(theirs_.data(), kReadBytes, MemoryKind::host, kRemoteRead)));
  landing_.emplace(must(initiator_->register_memory(ours_.data(), kReadBytes, MemoryKind::host, kPrivate)));
  ASSERT_TRUE(read().status.ok());
  const bool loaded = is_loaded();  // which the next line does by itself
  EXPECT_EQ(loaded, read_hwloc(kHwloc).ok());
  EXPECT_THAT(initiator_->describe(),
              ::testing::HasSubstr("2 rails, topology: " + Topology::with_hwloc()->source() + "; ucx "));
}

// A write's flush that is told while its connection is being ended confirms nothing, whatever it says; and there is no
// connection left to read back by.
class NullFabricOfBothKinds : public NullFabric, public ::testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(Emulated, NullFabricOfBothKinds, ::testing::Values("0", "1"));

TEST_P(NullFabricOfBothKinds, CanTellOfAFlushWhileItsConnectionIsBeingEnded) {
  owner_ = make("owner");
  initiator_ = make("initiator", {{"ucx", "HELD", "1"}, {"ucx", "STICK", "1"}, {"ucx", "EMULATED", GetParam()}});
  landing_.emplace(must(initiator_->register_memory(ours_.data(), kReadBytes, MemoryKind::host, kPrivate)));
  region_.emplace(must(owner_->register_memory(theirs_.data(), kReadBytes, MemoryKind::host, kRemoteReadWrite)));
  const auto begin = [&](Operation operation) {
    TransferRequest asked;
    asked.peer = must(initiator_->peer(owner_->address()));
    asked.operation = operation;
    asked.pairs = {{ours_.data(), region_->id(), 0, 100}};
    asked.timeout = std::chrono::seconds(60);
    return must(initiator_->submit(std::move(asked)));
  };
  const Transfer stuck = begin(Operation::read);
  const Transfer write = begin(Operation::write);
  ASSERT_TRUE(begin(Operation::read).wait().status.ok()) << "behind the write's last piece";
  stuck.cancel();
  const Outcome outcome = write.wait();
  ASSERT_FALSE(outcome.status.ok());
  EXPECT_EQ(outcome.status.error().code, ErrorCode::peer_lost) << outcome.status.error().to_string();
  EXPECT_TRUE(begin(Operation::write).wait().status.ok());
}

// What was cancelled costs the connection only where the library does not give it back.
TEST_F(NullFabric, KeepsItsConnectionWhereWhatWasCancelledIsGivenBack) {
  owner_ = make("owner");
  initiator_ = make("initiator", {{"ucx", "STICK", "40"}, {"ucx", "TAKES_BACK", "40"}, {"ucx", "REJECT", "1000"}});
  landing_.emplace(must(initiator_->register_memory(ours_.data(), kReadBytes, MemoryKind::host, kPrivate)));
  region_.emplace(must(owner_->register_memory(theirs_.data(), kReadBytes, MemoryKind::host, kRemoteRead)));
  TransferRequest asked;
  asked.peer = must(initiator_->peer(owner_->address()));
  asked.operation = Operation::read;
  for (uint64_t i = 0; i < 40; ++i) asked.pairs.push_back({ours_.data() + 200 * i, region_->id(), 200 * i, 100});
  const Transfer stuck = must(initiator_->submit(asked));
  const Outcome next = must(initiator_->submit(asked)).wait();
  ASSERT_TRUE(next.status.ok()) << next.status.error().to_string();
  stuck.cancel();
  const Outcome outcome = stuck.wait();
  ASSERT_FALSE(outcome.status.ok());
  EXPECT_EQ(outcome.status.error().code, ErrorCode::cancelled) << outcome.status.error().to_string();
  EXPECT_EQ(outcome.bytes_done, 0u);
  const Outcome behind = must(initiator_->submit(asked)).wait();
  EXPECT_TRUE(behind.status.ok()) << behind.status.error().to_string();
}

// An owner that has ended a connection refuses the next ones until it has heard that this side knows why.
TEST_F(NullFabric, IsDialledAgainBehindABrokenConnectionBeforeATransferFails) {
  owner_ = make("owner");
  initiator_ = make("initiator", {{"ucx", "STICK", "1"}, {"ucx", "REJECT", "3"}});
  landing_.emplace(must(initiator_->register_memory(ours_.data(), kReadBytes, MemoryKind::host, kPrivate)));
  region_.emplace(must(owner_->register_memory(theirs_.data(), kReadBytes, MemoryKind::host, kRemoteRead)));
  TransferRequest asked;
  asked.peer = must(initiator_->peer(owner_->address()));
  asked.operation = Operation::read;
  asked.pairs = {{ours_.data(), region_->id(), 0, 100}};
  const Transfer stuck = must(initiator_->submit(asked));
  ASSERT_TRUE(must(initiator_->submit(asked)).wait().status.ok()) << "the connection stands";
  stuck.cancel();  // which breaks it
  const Outcome outcome = must(initiator_->submit(asked)).wait();
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
}

TEST_F(NullFabric, PacksTheKeyOfARegionOnceForAllPeers) {
  owner_ = make("owner", {{"ucx", "PACKS", "1"}});
  region_.emplace(must(owner_->register_memory(theirs_.data(), kReadBytes, MemoryKind::host, kRemoteRead)));
  for (const char* name : {"first", "second", "third"}) {
    landing_.reset();
    initiator_ = make(name);
    landing_.emplace(must(initiator_->register_memory(ours_.data(), kReadBytes, MemoryKind::host, kPrivate)));
    const Outcome outcome = read();
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
    EXPECT_EQ(outcome.fabric, "ucx");
  }
  const auto another = owner_->register_memory(ours_.data(), 100, MemoryKind::host, kRemoteRead);
  ASSERT_FALSE(another.ok());
  EXPECT_THAT(another.error().to_string(), ::testing::HasSubstr("more keys than it was told to pack"));
}

TEST_F(NullFabric, ThatRefusesATransferSaysWhyAndTakesTheNext) {
  start("REFUSE", "1");
  const Outcome refused = read();
  ASSERT_FALSE(refused.status.ok());
  EXPECT_EQ(refused.status.error().code, ErrorCode::unavailable);
  EXPECT_THAT(refused.status.error().to_string(), ::testing::HasSubstr("refused as it was told to"));
  const Outcome next = read();
  EXPECT_TRUE(next.status.ok()) << next.status.error().to_string();
}

TEST_F(NullFabric, GetsNoOperationLongerThanItsLongest) {
  start("LONGEST", "4096");
  const Outcome outcome = read();
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
  EXPECT_EQ(outcome.bytes_done, kReadBytes);
}

TEST_F(NullFabric, ImportsTheKeyOfEachRegionOnceAndSaysWhichIsRefused) {
  start("KEYS", "2");
  std::vector<std::byte> memory(200);
  const auto another = [&](size_t at) {
    return must(owner_->register_memory(memory.data() + at, 100, MemoryKind::host, kRemoteRead));
  };
  const Region second = another(0), third = another(100);
  for (int round = 0; round < 3; ++round) {
    const Outcome first = read();
    ASSERT_TRUE(first.status.ok()) << first.status.error().to_string();
    const Outcome next = read(second, 100);
    ASSERT_TRUE(next.status.ok()) << next.status.error().to_string();
    const Outcome refused = read(third, 100);
    ASSERT_FALSE(refused.status.ok());
    EXPECT_EQ(refused.status.error().code, ErrorCode::protocol);
    EXPECT_THAT(refused.status.error().to_string(),
                ::testing::HasSubstr("the key of region " + std::to_string(third.id()) +
                                     " cannot be used: "
                                     "more keys than it was told to import"));
  }
}

// Its table may be laid out in any way: nothing of it is looked at but the number.
TEST(FabricOfAnotherInterface, IsNotUsedAndBothNumbersAreNamed) {
  EngineConfig config = null_config("engine");
  config.plugin_folder = other_abi_folder();
  const auto engine = Engine::create(config);
  ASSERT_FALSE(engine.ok());
  EXPECT_EQ(engine.error().code, ErrorCode::unsupported);
  EXPECT_THAT(
      engine.error().to_string(),
      ::testing::HasSubstr(fmt::format("libkvferry_fabric_ucx.so is fabric \"?\" of plug-in interface {}, wanted "
                                       "is \"ucx\" of {}",
                                       KVF_FABRIC_ABI + 1, KVF_FABRIC_ABI)));
}

// A key opens its region to whoever holds it: what a peer is told of private memory is where it lies, and no more.
TEST_F(NullFabric, ShowsKeysOfOpenRegionsAlone) {
  start("BUSY", "0");
  const Region hidden = must(owner_->register_memory(ours_.data(), kReadBytes, MemoryKind::host, kPrivate));
  RawConnection peer = RawConnection::dial(owner_->address());
  ASSERT_TRUE(peer.send(encode_session_preface() + RawConnection::encode(hello())));
  std::map<RegionId, proto::Region> told;
  const auto hear_of = [&](size_t regions) {
    while (told.size() < regions) {
      const proto::Frame frame = peer.receive_frame(proto::Frame::kRegions);
      if (!frame.has_regions()) return false;
      for (const proto::Region& region : frame.regions().added()) told[region.id()] = region;
    }
    return true;
  };
  ASSERT_TRUE(hear_of(2)) << "the table as it is";
  std::vector<std::byte> more(64);
  const Region later = must(owner_->register_memory(more.data(), more.size(), MemoryKind::host, kPrivate));
  ASSERT_TRUE(hear_of(3)) << "what is added to it";
  EXPECT_EQ(told[region_->id()].keys_size(), 1);
  for (const RegionId id : {hidden.id(), later.id()}) {
    EXPECT_EQ(told[id].permissions(), kPrivate);
    EXPECT_EQ(told[id].keys_size(), 0);
  }
}

}  // namespace
}  // namespace kvferry::test
