#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <regex>
#include <thread>

#include "test/conformance/null_engine.h"
#include "test/conformance/parcel_rank.h"
#include "test/support/eventually.h"

// What becomes of reads on a connection whose operations can neither end nor be ended (test/support/null_fabric).

namespace kvferry::test {
namespace {

constexpr size_t kLength = 4096;

// Of all connections of the engine.
size_t in_flight(const Engine& engine) {
  const std::string text = engine.describe();
  const std::regex number("([0-9]+) operations in flight");
  size_t out = 0;
  for (std::sregex_iterator found(text.begin(), text.end(), number); found != std::sregex_iterator(); ++found)
    out += std::stoul((*found)[1]);
  return out;
}

TransferRequest read_of(Engine& initiator, const Engine& owner, const Region& region, std::byte* into) {
  TransferRequest asked;
  asked.peer = must(initiator.peer(owner.address()));
  asked.operation = Operation::read;
  asked.pairs = {{into, region.id(), 0, kLength}};
  asked.timeout = std::chrono::seconds(60);
  return asked;
}

TEST(StuckFabric, ReadsThatItCannotEndAreNotDoneAndKeepTheirMemory) {
  EngineConfig config = null_config("initiator");
  config.fabric_settings = {{"ucx", "STICK", "2"}};
  const auto owner = must(Engine::create(null_config("owner")));
  const auto initiator = must(Engine::create(config));
  std::vector<std::byte> theirs(kLength), ours(kLength), others(kLength);
  const Region region = must(owner->register_memory(theirs.data(), kLength, MemoryKind::host, kRemoteRead));
  Region landing = must(initiator->register_memory(ours.data(), kLength, MemoryKind::host, kPrivate));
  const Region other = must(initiator->register_memory(others.data(), kLength, MemoryKind::host, kPrivate));
  const auto read = [&](std::byte* into) { return must(initiator->submit(read_of(*initiator, *owner, region, into))); };
  const Transfer first = read(others.data());
  const Transfer second = read(ours.data());
  ASSERT_TRUE(eventually([&] { return in_flight(*initiator) == 2; })) << initiator->describe();
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

// Of a parcel that the owner publishes for it.
ParcelReading begin_read(Rank& owner, Rank& reader, bool digest) {
  ParcelSpec spec;
  spec.transfer_id = "t1";
  spec.tokens = 16;
  spec.blocks = {{0, {3}}};
  spec.fingerprint = "model";
  spec.digest = digest;
  const Status published = owner.parcels->publish(spec);
  EXPECT_TRUE(published.ok()) << published.error().to_string();
  ParcelReadRequest request;
  request.transfer_id = "t1";
  request.owners = {must(reader.engine->peer(owner.engine->address()))};
  request.group_instance_id = "decoder";
  request.fingerprint = "model";
  request.blocks = {{0, {9}}};
  request.timeout = std::chrono::seconds(60);
  return must(reader.parcels->read(request));
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
    const ParcelReading reading = begin_read(*owner, *reader, digest);
    ASSERT_TRUE(eventually([&] { return in_flight(*reader->engine) == 1; })) << reader->engine->describe();
    reading.cancel();
    EXPECT_EQ(reading.wait().state, ReadState::cancelled);
    const Status early = reader->region.unregister(std::chrono::milliseconds(50));
    ASSERT_FALSE(early.ok()) << "the device may still write to it";
    EXPECT_EQ(early.error().code, ErrorCode::not_quiet) << early.error().to_string();
  }
}

// The initiator's loop stands still in a callback until the owner has ended the session, which is impatient.
void outstay_the_session(const Engine& owner, const std::function<Transfer()>& read) {
  std::promise<void> held, release;
  bool over = true;
  for (int attempt = 0; attempt < 100 && over; ++attempt) {
    over = false;
    read().on_done([&, here = std::this_thread::get_id()](const Outcome&) {
      if (std::this_thread::get_id() == here) {
        over = true;  // done already: nothing would be held
        return;
      }
      held.set_value();
      release.get_future().wait();
    });
  }
  ASSERT_EQ(held.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
  EXPECT_TRUE(eventually([&] { return owner.describe().find("\"sessions\":0") != std::string::npos; }));
  release.set_value();
}

void make_impatient(EngineConfig& config) {
  config.heartbeat = std::chrono::milliseconds(100);
  config.missed_heartbeats = 3;
}

// What moves to the next session would be moved beside what may still land; a fabric that moves nothing would call it
// done.
TEST(StuckFabric, NoTransferMovesToTheNextSessionWhileItsMemoryMayStillBeWritten) {
  EngineConfig owners = null_config("owner"), initiators = null_config("initiator");
  make_impatient(owners);
  initiators.fabric_settings = {{"ucx", "STICK", "1"}};
  const auto owner = must(Engine::create(owners));
  const auto initiator = must(Engine::create(initiators));
  std::vector<std::byte> theirs(kLength), ours(kLength), others(kLength);
  const Region region = must(owner->register_memory(theirs.data(), kLength, MemoryKind::host, kRemoteRead));
  Region landing = must(initiator->register_memory(ours.data(), kLength, MemoryKind::host, kPrivate));
  const Region other = must(initiator->register_memory(others.data(), kLength, MemoryKind::host, kPrivate));
  const Transfer stuck = must(initiator->submit(read_of(*initiator, *owner, region, ours.data())));
  ASSERT_TRUE(eventually([&] { return in_flight(*initiator) == 1; })) << initiator->describe();
  outstay_the_session(*owner,
                      [&] { return must(initiator->submit(read_of(*initiator, *owner, region, others.data()))); });
  const Outcome outcome = stuck.wait();
  ASSERT_FALSE(outcome.status.ok()) << "done, and nothing was read";
  EXPECT_EQ(outcome.status.error().code, ErrorCode::peer_lost) << outcome.status.error().to_string();
  EXPECT_EQ(landing.unregister(Duration(0)).error().code, ErrorCode::not_quiet);
}

// The same for a parcel, which is read again on the next session as often as need be.
class StuckParcels : public ::testing::TestWithParam<std::tuple<size_t, bool>> {};

TEST_P(StuckParcels, AreNotReadAgainIntoBlocksThatMayStillBeWritten) {
  const auto [rails, digest] = GetParam();
  std::vector<std::string> hosts{"127.0.0.1", "127.0.0.2"};
  hosts.resize(rails);
  const auto rank = [&](const char* name, uint64_t seed, const char* stick) {
    RankOptions options{name, {"ucx"}, nullptr, nullptr};
    options.configure = [&hosts, seed, stick](EngineConfig& config) {
      config.plugin_folder = null_fabric_folder();
      config.fabric_settings = {{"ucx", "STICK", stick}};
      config.rdma_hosts = hosts;
      config.logger = make_null_logger();
      if (seed == 1) make_impatient(config);
    };
    return std::make_unique<Rank>(options, seed);
  };
  const auto owner = rank("owner", 1, "0");
  const auto reader = rank("reader", 2, "1");
  Engine& engine = *reader->engine;
  std::vector<std::byte> theirs(kLength), ours(kLength);
  const Region open = must(owner->engine->register_memory(theirs.data(), kLength, MemoryKind::host, kRemoteRead));
  Region landing = must(engine.register_memory(ours.data(), kLength, MemoryKind::host, kPrivate));
  const auto read = [&] { return must(engine.submit(read_of(engine, *owner->engine, open, ours.data()))); };
  if (rails == 2) static_cast<void>(read());  // the first of each rail is what sticks
  ASSERT_TRUE(eventually([&] { return in_flight(engine) == rails - 1; })) << engine.describe();
  const ParcelReading reading = begin_read(*owner, *reader, digest);
  ASSERT_TRUE(eventually([&] { return in_flight(engine) == rails; })) << engine.describe();
  outstay_the_session(*owner->engine, read);
  const ParcelReadOutcome outcome = reading.wait();
  ASSERT_EQ(outcome.state, ReadState::failed) << "accepted, and nothing was read";
  EXPECT_EQ(outcome.status.error().code, ErrorCode::peer_lost) << outcome.status.error().to_string();
  EXPECT_EQ(reader->region.unregister(Duration(0)).error().code, ErrorCode::not_quiet);
  static_cast<void>(landing.unregister(Duration(0)));  // the other rail's
}

INSTANTIATE_TEST_SUITE_P(All, StuckParcels, ::testing::Combine(::testing::Values(1, 2), ::testing::Bool()),
                         [](const auto& tested) {
                           return std::string(std::get<0>(tested.param) == 1 ? "one_rail" : "two_rails") +
                                  (std::get<1>(tested.param) ? "_with_digest" : "");
                         });

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
    const Outcome outcome = initiator->transfer(read_of(*initiator, *owner, region, ours.data()));
    if (silent[0] == '1')
      EXPECT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
    else
      EXPECT_THAT(outcome.status.error().to_string(), ::testing::HasSubstr("no answer for 2.0 s"));
  }
}

}  // namespace
}  // namespace kvferry::test
