#include "test/support/devices.h"
#include "test/system/faults.h"

// A peer that takes nothing, beside one that does: what the two have in common is not all the first one's (I7).

namespace kvferry::test {
namespace {

using std::chrono::seconds;

constexpr size_t kBytes = size_t{64} << 20;

// Writes from memory that the CPU cannot touch pass by the engine's staging memory.
TEST(SlowPeers, LeaveStagingMemoryToOthers) {
  const auto device = make_device(MemoryKind::fake);
  std::byte* const memory = device->allocate(kBytes);
  EngineConfig config;
  config.engine_id = "initiator";
  config.fabrics = {"tcp"};
  config.missed_heartbeats = kPatient;
  config.allow_open = true;
  config.staging_bytes = size_t{32} << 20;
  const auto engine = must(Engine::create(config, {device->ops()}));
  const Region region = must(engine->register_memory(memory, kBytes, MemoryKind::fake, kPrivate));
  Target::Options options;
  options.bytes = kBytes;
  Target slow = Target::start(options);
  options.id = "p1";
  Target quick = Target::start(options);
  const auto write = [&](const Target& target, size_t bytes, Duration timeout) {
    TransferRequest asked;
    asked.peer = must(engine->peer(target.address()));
    asked.operation = Operation::write;
    asked.pairs = {{memory, target.region(), 0, bytes}};
    asked.timeout = timeout;
    return must(engine->submit(std::move(asked)));
  };
  for (const Target* each : {&slow, &quick})
    ASSERT_TRUE(write(*each, kBytes, seconds(30 * kSlower)).wait().status.ok());
  ASSERT_TRUE(slow.process().stop().ok());
  const Transfer large = write(slow, kBytes, seconds(300));
  std::vector<Transfer> small;
  for (int i = 0; i < 300; ++i) small.push_back(write(slow, size_t{100} << 10, seconds(300)));
  for (const size_t bytes : {size_t{100} << 10, kBytes}) {
    const Outcome outcome = write(quick, bytes, seconds(30 * kSlower)).wait();
    EXPECT_TRUE(outcome.status.ok()) << text_of(outcome);
  }
  EXPECT_FALSE(large.done());
  ASSERT_TRUE(slow.process().resume().ok());
  EXPECT_TRUE(large.wait().status.ok()) << text_of(large.wait());
  for (const Transfer& each : small) EXPECT_TRUE(each.wait().status.ok()) << text_of(each.wait());
}

}  // namespace
}  // namespace kvferry::test
