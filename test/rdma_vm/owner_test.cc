#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <optional>

#include "test/conformance/plugin_cases.h"
#include "test/support/engines.h"
#include "test/support/eventually.h"
#include "test/support/target.h"

// What only a device can show: that an owner's CPU takes no part, what crosses the wire, and what becomes of a transfer
// whose owner dies under it. Runs where KVFERRY_TEST_UCX_TLS or KVFERRY_TEST_OFI_PROVIDER, and KVFERRY_TEST_HOST, name
// a device (test/rdma_vm/guest).

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr size_t kBytes = size_t{64} << 20;
constexpr uint64_t kPacket = 4096;  // the largest that RoCE has

// That all software RDMA devices of this machine have sent; sessions and lanes are none of it.
uint64_t packets_sent() {
  uint64_t sum = 0;
  for (const auto& device : std::filesystem::directory_iterator("/sys/class/infiniband")) {
    uint64_t one = 0;
    std::ifstream(device.path() / "ports/1/hw_counters/sent_pkts") >> one;
    sum += one;
  }
  return sum;
}

// The same once the last transfer's connection has nothing more to say: after a hundred looks without a packet.
uint64_t packets_once_quiet() {
  uint64_t last = packets_sent();
  int same = 0;
  EXPECT_TRUE(eventually([&] {
    const uint64_t now = packets_sent();
    same = now == last ? same + 1 : 0;
    last = now;
    return same >= 100;
  }));
  return last;
}

class RdmaOwner : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_rdma_device()) GTEST_SKIP() << "no variable names what drives a device";
    ASSERT_EQ(why_no_fabric(tested().fabric), "");
    EngineConfig config;
    config.fabrics = {tested().fabric};
    config.heartbeat = seconds(30);
    config.logger = make_null_logger();
    use_transports(config, tested().fabric, tested().transports);
    engine_ = must(Engine::create(std::move(config)));
    memory_.assign(kBytes, std::byte{1});
    region_ = must(engine_->register_memory(memory_.data(), kBytes, MemoryKind::host, kPrivate));
  }
  static const PluginCase& tested() { return plugin_cases()[0]; }
  static Target start_target(int heartbeat_ms = 30000) {
    Target::Options options;
    options.fabric = tested().fabric;
    options.bytes = kBytes;
    options.heartbeat_ms = heartbeat_ms;
    options.environment = {{transports_variable(tested().fabric), tested().transports},
                           {"KVFERRY_RDMA_HOST", rdma_host()}};
    return Target::start(options);
  }
  TransferRequest request(const Target& target, Operation operation, uint64_t offset, uint64_t length) {
    TransferRequest made;
    made.peer = must(engine_->peer(target.address()));
    made.operation = operation;
    made.pairs = {{memory_.data(), target.region(), offset, length}};
    made.timeout = seconds(40);  // the session would outlast it: a stopped owner is no dead one here
    return made;
  }
  Outcome move(const Target& target, Operation operation, uint64_t offset, uint64_t length) {
    return engine_->transfer(request(target, operation, offset, length));
  }
  void expect_moved(const Outcome& outcome, uint64_t length) {
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string() << "\n" << engine_->describe();
    EXPECT_EQ(outcome.fabric, tested().fabric);
    EXPECT_EQ(outcome.bytes_done, length);
  }
  // The connection stands and the region's key is imported.
  void expect_connected(const Target& target) { expect_moved(move(target, Operation::read, 0, 1), 1); }

  std::unique_ptr<Engine> engine_;
  std::vector<std::byte> memory_;
  Region region_;
};

// The proof that reads and writes are one-sided: the owner's process cannot run.
TEST_F(RdmaOwner, IsReadAndWrittenWhileItsProcessIsStopped) {
  Target target = start_target();
  ASSERT_EQ(target.ask("fill 7"), "ok");
  ASSERT_NO_FATAL_FAILURE(expect_connected(target));
  ASSERT_TRUE(target.process().stop().ok());

  uint64_t before = packets_sent();
  ASSERT_NO_FATAL_FAILURE(expect_moved(move(target, Operation::read, 0, kBytes), kBytes));
  EXPECT_EQ(memory_, std::vector<std::byte>(kBytes, std::byte{7}));
  EXPECT_GE(packets_sent() - before, kBytes / kPacket) << "the bytes of the read did not cross the device";

  memory_.assign(kBytes, std::byte{9});
  before = packets_sent();
  ASSERT_NO_FATAL_FAILURE(expect_moved(move(target, Operation::write, 0, kBytes), kBytes));
  EXPECT_EQ(target.memory(), memory_) << "a write is complete when the owner can see it";
  EXPECT_GE(packets_sent() - before, kBytes / kPacket) << "the bytes of the write did not cross the device";

  ASSERT_TRUE(target.process().resume().ok());
}

// I8: whoever is told of a write finds all of it.
TEST_F(RdmaOwner, FindsAllBytesOfAWriteWhenItsNotificationComes) {
  Target target = start_target();
  memory_.assign(kBytes, std::byte{6});
  TransferRequest asked = request(target, Operation::write, 0, kBytes);
  asked.notify = Notification{"written", "all"};
  target.send("expect 6");
  const Outcome outcome = engine_->transfer(std::move(asked));
  EXPECT_EQ(target.answer(), "ok all");
  expect_moved(outcome, kBytes);
}

// One address outside costs the connection: none may leave.
TEST_F(RdmaOwner, IsAskedForNothingOutsideOfItsRegion) {
  Target target = start_target();
  ASSERT_NO_FATAL_FAILURE(expect_connected(target));
  const uint64_t before = packets_once_quiet();
  for (const Operation operation : {Operation::read, Operation::write}) {
    const Outcome outcome = move(target, operation, kBytes - 10, 11);
    ASSERT_FALSE(outcome.status.ok());
    EXPECT_EQ(outcome.status.error().code, ErrorCode::invalid_argument) << outcome.status.error().to_string();
  }
  EXPECT_EQ(packets_sent(), before);
  ASSERT_TRUE(target.process().stop().ok());  // a new connection could not be made now
  ASSERT_NO_FATAL_FAILURE(expect_connected(target));
  ASSERT_TRUE(target.process().resume().ok());
}

TEST_F(RdmaOwner, IsAskedForNothingInARegionThatIsGone) {
  Target target = start_target();
  ASSERT_NO_FATAL_FAILURE(expect_connected(target));
  ASSERT_EQ(target.ask("unregister 60000"), "ok");
  const Outcome outcome = move(target, Operation::read, 0, 1000);
  ASSERT_FALSE(outcome.status.ok());
  EXPECT_EQ(outcome.status.error().code, ErrorCode::not_found) << outcome.status.error().to_string();
  const std::string again = target.ask("register");
  ASSERT_TRUE(again.starts_with("ok ")) << again;
  target.set_region(std::stoull(again.substr(3)));
  ASSERT_EQ(target.ask("fill 4"), "ok");
  ASSERT_NO_FATAL_FAILURE(expect_moved(move(target, Operation::read, 0, 1000), 1000));
  EXPECT_EQ(memory_[999], std::byte{4});
}

// I3, I4, I5: the outcome comes, the memory is quiet behind it, and the owner's successor is served.
TEST_F(RdmaOwner, IsKilledUnderAReadAndAWrite) {
  for (const Operation operation : {Operation::read, Operation::write}) {
    std::optional<Target> target;
    std::optional<Outcome> outcome;
    // Whoever stands still between the first packets and the kill comes too late for the transfer.
    for (int tries = 0; tries < 5 && (!outcome || outcome->status.ok()); ++tries) {
      target.emplace(start_target(5000));
      ASSERT_NO_FATAL_FAILURE(expect_connected(*target));
      const uint64_t before = packets_sent();
      const Transfer transfer = must(engine_->submit(request(*target, operation, 0, kBytes)));
      ASSERT_TRUE(eventually([&] { return packets_sent() - before > 200; }));
      ASSERT_TRUE(target->process().kill().ok());
      outcome = transfer.wait_for(seconds(60));
      ASSERT_TRUE(outcome.has_value()) << engine_->describe();
    }
    ASSERT_FALSE(outcome->status.ok());
    EXPECT_LT(outcome->bytes_done, kBytes);
    const std::vector<std::byte> quiet = memory_;
    Target next = Target::start(target->successor());
    ASSERT_EQ(next.ask("fill 5"), "ok");
    EXPECT_EQ(memory_, quiet) << "written to after the outcome";
    Outcome again;
    ASSERT_TRUE(eventually([&] { return (again = move(next, Operation::read, 0, 5000)).status.ok(); }))
        << again.status.error().to_string();
    EXPECT_EQ(memory_[4999], std::byte{5});
  }
}

}  // namespace
}  // namespace kvferry::test
