#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "test/conformance/null_engine.h"
#include "test/conformance/parcel_rank.h"
#include "test/support/eventually.h"

// What becomes of reads on a connection whose operations can neither end nor be ended (test/support/null_fabric).

namespace kvferry::test {
namespace {

constexpr size_t kLength = 4096;

TEST(StuckFabric, ReadsThatItCannotEndAreNotDoneAndKeepTheirMemory) {
  EngineConfig config = null_config("initiator");
  config.fabric_settings = {{"ucx", "STICK", "2"}};
  const auto owner = must(Engine::create(null_config("owner")));
  const auto initiator = must(Engine::create(config));
  std::vector<std::byte> theirs(kLength), ours(kLength), others(kLength);
  const Region region = must(owner->register_memory(theirs.data(), kLength, MemoryKind::host, kRemoteRead));
  Region landing = must(initiator->register_memory(ours.data(), kLength, MemoryKind::host, kPrivate));
  const Region other = must(initiator->register_memory(others.data(), kLength, MemoryKind::host, kPrivate));
  const auto read = [&](std::byte* into) {
    TransferRequest asked;
    asked.peer = must(initiator->peer(owner->address()));
    asked.operation = Operation::read;
    asked.pairs = {{into, region.id(), 0, kLength}};
    asked.timeout = std::chrono::seconds(60);
    return must(initiator->submit(asked));
  };
  const Transfer first = read(others.data());
  const Transfer second = read(ours.data());
  ASSERT_TRUE(eventually([&] {
    return initiator->describe().find("connected to 127.0.0.1:1, 2 operations in flight") != std::string::npos;
  })) << initiator->describe();
  first.cancel();
  EXPECT_EQ(first.wait().status.error().code, ErrorCode::cancelled);
  const Outcome outcome = second.wait();
  ASSERT_FALSE(outcome.status.ok()) << "done, and nothing was read";
  EXPECT_EQ(outcome.status.error().code, ErrorCode::peer_lost) << outcome.status.error().to_string();
  // The device may still write to it.
  const Status early = landing.unregister(std::chrono::milliseconds(50));
  ASSERT_FALSE(early.ok());
  EXPECT_EQ(early.error().code, ErrorCode::not_quiet) << early.error().to_string();
  // The next connection works, and ends what was left of the one before.
  EXPECT_TRUE(read(others.data()).wait().status.ok());
  EXPECT_TRUE(
      eventually([&] { return initiator->register_memory(ours.data(), kLength, MemoryKind::host, kPrivate).ok(); }));
}

// I4: a parcel's blocks stay pinned like any memory that a device may still write to.
TEST(StuckFabric, BlocksThatItCannotLetGoOfStayPinned) {
  for (const bool digest : {false, true}) {
    const auto rank = [&](const char* name, uint64_t seed, const char* stick) {
      RankOptions options{name, {"ucx"}, nullptr, nullptr};
      options.configure = [stick](EngineConfig& config) {
        config.plugin_folder = null_fabric_folder();
        config.fabric_settings = {{"ucx", "STICK", stick}};
      };
      return std::make_unique<Rank>(options, seed);
    };
    const auto owner = rank("owner", 1, "0");
    const auto reader = rank("reader", 2, "1");
    ParcelSpec spec;
    spec.transfer_id = "t1";
    spec.tokens = 16;
    spec.blocks = {{0, {3}}};
    spec.fingerprint = "model";
    spec.digest = digest;
    ASSERT_TRUE(owner->parcels->publish(spec).ok());
    ParcelReadRequest request;
    request.transfer_id = "t1";
    request.owners = {must(reader->engine->peer(owner->engine->address()))};
    request.group_instance_id = "decoder";
    request.fingerprint = "model";
    request.blocks = {{0, {9}}};
    request.timeout = std::chrono::seconds(60);
    const ParcelReading reading = must(reader->parcels->read(request));
    ASSERT_TRUE(eventually([&] {
      return reader->engine->describe().find("connected to 127.0.0.1:1, 1 operations in flight") != std::string::npos;
    })) << reader->engine->describe();
    reading.cancel();
    EXPECT_EQ(reading.wait().state, ReadState::cancelled);
    const Status early = reader->region.unregister(std::chrono::milliseconds(50));
    ASSERT_FALSE(early.ok()) << "the device may still write to it";
    EXPECT_EQ(early.error().code, ErrorCode::not_quiet) << early.error().to_string();
  }
}

// A handshake that is lost is not the transfer's end: there is time for a second one.
TEST(StuckFabric, AConnectionThatNobodyAnswersIsTriedTwice) {
  for (const char* silent : {"1", "2"}) {
    EngineConfig config = null_config("initiator");
    config.fabric_settings = {{"ucx", "SILENT", silent}};
    config.connect_timeout = std::chrono::seconds(2);
    const auto owner = must(Engine::create(null_config("owner")));
    const auto initiator = must(Engine::create(config));
    std::vector<std::byte> theirs(kLength), ours(kLength);
    const Region region = must(owner->register_memory(theirs.data(), kLength, MemoryKind::host, kRemoteRead));
    const Region landing = must(initiator->register_memory(ours.data(), kLength, MemoryKind::host, kPrivate));
    TransferRequest asked;
    asked.peer = must(initiator->peer(owner->address()));
    asked.operation = Operation::read;
    asked.pairs = {{ours.data(), region.id(), 0, kLength}};
    asked.timeout = std::chrono::seconds(60);
    const Outcome outcome = initiator->transfer(std::move(asked));
    if (silent[0] == '1')
      EXPECT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
    else
      EXPECT_THAT(outcome.status.error().to_string(), ::testing::HasSubstr("no answer for 2.0 s"));
  }
}

}  // namespace
}  // namespace kvferry::test
