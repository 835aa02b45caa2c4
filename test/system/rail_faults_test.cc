#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <regex>

#include "test/conformance/plugin_cases.h"
#include "test/system/network.h"

// A peer that is reached by two devices, one of which the network swallows: what it had goes on by the other, and it is
// used again when it is back.

namespace kvferry::test {
namespace {

using std::chrono::seconds;

constexpr size_t kBytes = size_t{16} << 20;

class RailFaults : public OnALink<::testing::Test> {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_fabric("ofi"); !why.empty()) GTEST_SKIP() << why;
    OnALink::SetUp();
    if (IsSkipped()) return;
    add_second_link();
    if (HasFatalFailure()) return;
    Target::Options options;
    options.listen = "10.78.0.1:7100";
    options.fabric = "ofi";
    options.bytes = kBytes;
    options.network_namespace = link_->network_namespace(Side::left);
    options.environment = {{"KVFERRY_OFI_PROVIDER", "tcp"},
                           {"KVFERRY_ALLOW_OPEN", "1"},
                           {"KVFERRY_RDMA_HOST", Link::address(Side::left) + ",10.78.0.1"}};
    target_.emplace(Target::start(options));
    EngineConfig config;
    config.engine_id = "initiator";
    config.listen = "10.78.0.2:0";
    config.allow_open = true;
    config.fabrics = {"ofi"};
    config.fabric_settings = {{"ofi", "PROVIDER", "tcp"}};
    config.rdma_hosts = {Link::address(Side::right), "10.78.0.2"};
    config.missed_heartbeats = kPatient;
    config.logger = make_null_logger();
    engine_ = must(Engine::create(std::move(config)));
    memory_.assign(kBytes, std::byte{0});
    region_ = must(engine_->register_memory(memory_.data(), kBytes, MemoryKind::host, kPrivate));
  }

  // Between the same two namespaces, and not hindered: the session's, too.
  void add_second_link() {
    auto holder = must(Process::spawn(
        "/bin/cat", {.arguments = {}, .environment = {}, .network_namespace = link_->network_namespace(Side::left)}));
    const std::string there = "nsenter --net=/proc/" + std::to_string(holder.pid()) + "/ns/net ";
    for (const std::string& command :
         {"ip link add second type veth peer name second netns " + std::to_string(holder.pid()),
          std::string("ip addr add 10.78.0.2/24 dev second"), std::string("ip link set second up"),
          there + "ip addr add 10.78.0.1/24 dev second", there + "ip link set second up"})
      ASSERT_EQ(std::system(command.c_str()), 0) << command;
  }

  Outcome move(Operation operation, Duration timeout) {
    TransferRequest asked;
    asked.peer = must(engine_->peer(target_->address()));
    asked.operation = operation;
    asked.pairs = {{memory_.data(), target_->region(), 0, kBytes}};
    asked.timeout = timeout;
    return engine_->transfer(std::move(asked));
  }
  void expect_read(uint8_t value, Duration timeout) {
    std::fill(memory_.begin(), memory_.end(), std::byte{0});
    EXPECT_EQ(target_->ask("fill " + std::to_string(value)), "ok");
    const Outcome outcome = move(Operation::read, timeout);
    ASSERT_TRUE(outcome.status.ok()) << text_of(outcome) << engine_->describe();
    EXPECT_EQ(std::count(memory_.begin(), memory_.end(), std::byte{value}), static_cast<ptrdiff_t>(kBytes));
  }
  std::vector<uint64_t> moved() const { return numbers("([0-9]+) bytes moved"); }
  bool first_is_out() const { return engine_->describe().find(": out, ") != std::string::npos; }
  std::vector<uint64_t> numbers(const char* pattern) const {
    const std::string text = engine_->describe();
    std::vector<uint64_t> out;
    const std::regex number(pattern);
    for (std::sregex_iterator found(text.begin(), text.end(), number); found != std::sregex_iterator(); ++found)
      out.push_back(std::stoull((*found)[1]));
    return out;
  }

  std::optional<Target> target_;
  std::unique_ptr<Engine> engine_;
  std::vector<std::byte> memory_;
  Region region_;
};

TEST_F(RailFaults, ReadsGoOnWithoutARailAndUseItAgainWhenItIsBack) {
  expect_read(1, seconds(60));
  const auto before = moved();
  ASSERT_EQ(before.size(), 2u) << engine_->describe();
  EXPECT_GT(before[0], 0u);
  EXPECT_GT(before[1], 0u);
  // A read that is under way when the rail is swallowed, and one that comes when it is known to be out.
  shape("cut");
  expect_read(2, seconds(60));
  EXPECT_TRUE(first_is_out()) << engine_->describe();
  const auto without = moved();
  const Stopwatch watch;
  expect_read(3, seconds(60));
  EXPECT_LT(watch.elapsed(), seconds(2 * kSlower)) << "a read waited for a rail that is out";
  EXPECT_EQ(moved()[0], without[0]);
  EXPECT_EQ(moved()[1], without[1] + kBytes);

  shape("heal");
  EXPECT_TRUE(eventually([&] { return !first_is_out(); })) << engine_->describe();
  expect_read(4, seconds(60));
  EXPECT_GT(moved()[0], without[0]);
}

// Nobody can say whether what was written by the rail that is gone still arrives: the write ends, and not as done.
TEST_F(RailFaults, AWriteThatWasUnderWayByTheRailEndsInItsTime) {
  expect_read(1, seconds(60));
  shape("cut");
  const Stopwatch watch;
  const Outcome outcome = move(Operation::write, seconds(60));
  EXPECT_EQ(outcome.status.error().code, ErrorCode::peer_lost) << text_of(outcome);
  EXPECT_LT(watch.elapsed(), seconds(20 * kSlower));
  std::fill(memory_.begin(), memory_.end(), std::byte{7});
  const Outcome next = move(Operation::write, seconds(60));
  ASSERT_TRUE(next.status.ok()) << text_of(next);
  EXPECT_TRUE(target_->has_byte(0, std::byte{7}));
  EXPECT_TRUE(target_->has_byte(kBytes - 1, std::byte{7}));
}

}  // namespace
}  // namespace kvferry::test
