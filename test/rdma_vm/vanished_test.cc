#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <optional>

#include "test/conformance/plugin_cases.h"
#include "test/support/engines.h"
#include "test/support/eventually.h"
#include "test/support/target.h"

// A host that vanishes: nothing of it answers any more, and nothing says so, neither its device nor its kernel. Runs in
// the guest, where two devices are the ends of a cable (test/rdma_vm/init).

namespace kvferry::test {
namespace {

using std::chrono::seconds;

constexpr size_t kBytes = size_t{32} << 20;
constexpr const char* kNear = "10.0.0.1";
constexpr const char* kFar = "10.0.0.2";

std::string hardware_address(const char* link) {
  std::string out;
  std::ifstream(std::string("/sys/class/net/") + link + "/address") >> out;
  return out;
}

// While it lives, what goes from one of the two addresses to the other takes the cable, as between hosts: the kernel
// keeps to itself what it sends to an address of its own.
class Cable {
 public:
  Cable() {
    for (const char* link : {"all", "v0", "v1"})
      for (const auto& [name, value] : {std::pair("accept_local", 1), std::pair("rp_filter", 0)})
        std::ofstream(std::string("/proc/sys/net/ipv4/conf/") + link + "/" + name) << value;
    ip({"route add 10.0.0.2 dev v0 src 10.0.0.1 table 100", "route add 10.0.0.1 dev v1 src 10.0.0.2 table 101"});
    heal();
    ip({"rule add pref 10 iif lo from 10.0.0.2 to 10.0.0.2 lookup local",
        "rule add pref 11 iif lo from 10.0.0.2 to 10.0.0.1 lookup 101",
        "rule add pref 12 iif lo to 10.0.0.2 lookup 100", "rule add pref 20 lookup local", "rule del pref 0"});
  }
  ~Cable() {
    ip({"rule add pref 0 lookup local", "rule del pref 20", "rule del pref 12", "rule del pref 11", "rule del pref 10",
        "route flush table 100", "route flush table 101", "neigh flush all nud permanent"});
  }
  Cable(const Cable&) = delete;
  Cable& operator=(const Cable&) = delete;

  void heal() { send_to(hardware_address("v0"), hardware_address("v1")); }
  // All that is sent goes to stations that there are not.
  void swallow() { send_to("02:00:00:00:00:aa", "02:00:00:00:00:bb"); }

 private:
  static void send_to(const std::string& near, const std::string& far) {
    ip({"neigh replace 10.0.0.2 lladdr " + far + " dev v0 nud permanent",
        "neigh replace 10.0.0.1 lladdr " + near + " dev v1 nud permanent"});
  }
  // One process for all, so that both directions end in the same moment.
  static void ip(const std::vector<std::string>& commands) {
    std::string script;
    for (const std::string& command : commands) script += command + "\n";
    ASSERT_EQ(std::system(("echo '" + script + "' | /bin/ip -batch -").c_str()), 0) << script;
  }
};

class Vanished : public ::testing::TestWithParam<Operation> {
 protected:
  void SetUp() override {
    if (!has_rdma_device() || hardware_address("v1").empty()) GTEST_SKIP() << "not in the guest";
    cable_.emplace();
    if (HasFatalFailure()) return;
    EngineConfig config;
    config.fabrics = {tested().fabric};
    config.listen = std::string(kNear) + ":0";
    config.auth.mode = AuthMode::open;
    config.allow_open = true;
    config.heartbeat = seconds(1);
    config.missed_heartbeats = 3;
    config.logger = make_null_logger();
    use_transports(config, tested().fabric, tested().transports);
    engine_ = must(Engine::create(std::move(config)));
    memory_.assign(kBytes, std::byte{1});
    region_ = must(engine_->register_memory(memory_.data(), kBytes, MemoryKind::host, kPrivate));
    Target::Options options;
    options.listen = std::string(kFar) + ":7100";
    options.fabric = tested().fabric;
    options.bytes = kBytes;
    options.heartbeat_ms = 1000;
    options.environment = {{transports_variable(tested().fabric), tested().transports},
                           {"KVFERRY_RDMA_HOST", kFar},
                           {"KVFERRY_ALLOW_OPEN", "1"}};
    target_.emplace(Target::start(options));
  }
  static const PluginCase& tested() { return plugin_cases()[0]; }
  Transfer submit(uint64_t length) {
    TransferRequest asked;
    asked.peer = must(engine_->peer(target_->address()));
    asked.operation = GetParam();
    asked.pairs = {{memory_.data(), target_->region(), 0, length}};
    asked.timeout = seconds(300);
    return must(engine_->submit(std::move(asked)));
  }

  std::optional<Cable> cable_;
  std::unique_ptr<Engine> engine_;
  std::vector<std::byte> memory_;
  Region region_;
  std::optional<Target> target_;
};

// I3, I4: the outcome comes in the time of heartbeats, the memory is quiet behind it, and the host that comes back is
// served.
TEST_P(Vanished, IsToldAndServedAgainOnceItIsBack) {
  const Outcome first = submit(1).wait();
  ASSERT_TRUE(first.status.ok()) << first.status.error().to_string() << "\n" << engine_->describe();
  EXPECT_EQ(first.fabric, tested().fabric);
  const Transfer transfer = submit(kBytes);
  ASSERT_TRUE(eventually(
      [&] { return transfer.done() || engine_->describe().find(" 0 operations in flight") == std::string::npos; }));
  cable_->swallow();
  const auto began = std::chrono::steady_clock::now();
  const auto outcome = transfer.wait_for(seconds(120));
  ASSERT_TRUE(outcome.has_value()) << engine_->describe();
  ASSERT_FALSE(outcome->status.ok()) << "it was over before the host was gone";
  const ErrorCode code = outcome->status.error().code;  // of the session, or of the device's next connection
  EXPECT_TRUE(code == ErrorCode::peer_lost || code == ErrorCode::unavailable) << outcome->status.error().to_string();
  const auto took = std::chrono::steady_clock::now() - began;
  std::printf("told after %.1f s: %s\n", std::chrono::duration<double>(took).count(),
              outcome->status.error().to_string().c_str());
  EXPECT_LT(took, seconds(10));
  const std::vector<std::byte> quiet = memory_;
  cable_->heal();
  Outcome again;
  ASSERT_TRUE(eventually([&] { return (again = submit(5000).wait()).status.ok(); }))
      << again.status.error().to_string();
  if (GetParam() == Operation::read) {
    EXPECT_TRUE(std::equal(memory_.begin() + 5000, memory_.end(), quiet.begin() + 5000))
        << "written to after the outcome";
  }
  const Status gone = region_.unregister(seconds(10));
  EXPECT_TRUE(gone.ok()) << gone.error().to_string();
}

INSTANTIATE_TEST_SUITE_P(All, Vanished, ::testing::Values(Operation::read, Operation::write),
                         [](const auto& tested) { return tested.param == Operation::read ? "read" : "write"; });

}  // namespace
}  // namespace kvferry::test
