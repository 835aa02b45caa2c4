#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "test/conformance/plugin_cases.h"
#include "test/support/engines.h"
#include "test/support/eventually.h"
#include "test/support/target.h"

namespace kvferry::test {

// While it lives, what goes from one of the guest's two addresses to the other takes the cable between its two devices
// (test/rdma_vm/init), as between hosts: the kernel keeps to itself what it sends to an address of its own.
class Cable {
 public:
  static constexpr const char* kNear = "10.0.0.1";
  static constexpr const char* kFar = "10.0.0.2";

  static bool is_there() { return has_rdma_device() && !hardware_address("v1").empty(); }

  Cable() {
    for (const char* link : {"all", "v0", "v1"})
      for (const auto& [name, value] : {std::pair("accept_local", 1), std::pair("rp_filter", 0)})
        std::ofstream(std::string("/proc/sys/net/ipv4/conf/") + link + "/" + name) << value;
    batch("/bin/ip",
          {"route add 10.0.0.2 dev v0 src 10.0.0.1 table 100", "route add 10.0.0.1 dev v1 src 10.0.0.2 table 101"});
    batch("/bin/ip", {"neigh replace 10.0.0.2 lladdr " + hardware_address("v1") + " dev v0 nud permanent",
                      "neigh replace 10.0.0.1 lladdr " + hardware_address("v0") + " dev v1 nud permanent"});
    batch("/bin/ip",
          {"rule add pref 10 iif lo from 10.0.0.2 to 10.0.0.2 lookup local",
           "rule add pref 11 iif lo from 10.0.0.2 to 10.0.0.1 lookup 101",
           "rule add pref 12 iif lo to 10.0.0.2 lookup 100", "rule add pref 20 lookup local", "rule del pref 0"});
  }
  ~Cable() {
    heal();
    batch("/bin/ip",
          {"rule add pref 0 lookup local", "rule del pref 20", "rule del pref 12", "rule del pref 11",
           "rule del pref 10", "route flush table 100", "route flush table 101", "neigh flush all nud permanent"});
  }
  Cable(const Cable&) = delete;
  Cable& operator=(const Cable&) = delete;

  // Both ways: in the words of netem, "loss 1%" for instance.
  void disturb(const std::string& how) {
    batch("/sbin/tc", {"qdisc replace dev v0 root netem limit 100000 " + how,
                       "qdisc replace dev v1 root netem limit 100000 " + how});
    disturbed_ = true;
  }
  // Nothing arrives any more. Nobody is told: a neighbour that moved, for instance, the kernel would tell of
  // connections.
  void swallow() { disturb("loss 100%"); }
  void heal() {
    if (std::exchange(disturbed_, false)) batch("/sbin/tc", {"qdisc del dev v0 root", "qdisc del dev v1 root"});
  }
  // What netem has dropped.
  uint64_t dropped() {
    uint64_t sum = 0;
    for (const char* link : {"v0", "v1"}) {
      run(std::string("/sbin/tc -s qdisc show dev ") + link +
          " | sed -n 's/.*dropped \\([0-9]*\\),.*/\\1/p' >/tmp/dropped");
      uint64_t count = 0;
      std::ifstream("/tmp/dropped") >> count;
      sum += count;
    }
    return sum;
  }

 private:
  static std::string hardware_address(const char* link) {
    std::string out;
    std::ifstream(std::string("/sys/class/net/") + link + "/address") >> out;
    return out;
  }
  static void run(const std::string& command) { ASSERT_EQ(std::system(command.c_str()), 0) << command; }
  // One process for all, so that both directions end in the same moment.
  static void batch(const char* program, const std::vector<std::string>& commands) {
    std::string script;
    for (const std::string& command : commands) script += command + "\n";
    run("echo '" + script + "' | " + program + " -batch -");
  }

  bool disturbed_ = false;
};

// An engine at one end of the cable, and a target at the other.
class OnACable : public ::testing::TestWithParam<Operation> {
 protected:
  static const PluginCase& tested() { return plugin_cases()[0]; }
  static bool is_read() { return GetParam() == Operation::read; }

  void SetUp() override {
    if (!Cable::is_there()) GTEST_SKIP() << "not in the guest";
    cable_.emplace();
  }

  void start(size_t bytes, Duration heartbeat, int missed_heartbeats) {
    EngineConfig config;
    config.fabrics = {tested().fabric};
    config.listen = std::string(Cable::kNear) + ":0";
    config.auth.mode = AuthMode::open;
    config.allow_open = true;
    config.heartbeat = heartbeat;
    config.missed_heartbeats = missed_heartbeats;
    config.connect_timeout = std::chrono::seconds(60);
    config.logger = make_null_logger();
    use_transports(config, tested().fabric, tested().transports);
    engine_ = must(Engine::create(std::move(config)));
    memory_.assign(bytes, std::byte{1});
    region_ = must(engine_->register_memory(memory_.data(), bytes, MemoryKind::host, kPrivate));
    Target::Options options;
    options.listen = std::string(Cable::kFar) + ":7100";
    options.fabric = tested().fabric;
    options.bytes = bytes;
    options.heartbeat_ms = static_cast<int>(heartbeat / std::chrono::milliseconds(1));
    options.environment = {{transports_variable(tested().fabric), tested().transports},
                           {"KVFERRY_RDMA_HOST", Cable::kFar},
                           {"KVFERRY_ALLOW_OPEN", "1"}};
    target_.emplace(Target::start(options));
  }

  Transfer submit(uint64_t length, Duration timeout = std::chrono::seconds(300)) {
    TransferRequest asked;
    asked.peer = must(engine_->peer(target_->address()));
    asked.operation = GetParam();
    asked.pairs = {{memory_.data(), target_->region(), 0, length}};
    asked.timeout = timeout;
    return must(engine_->submit(std::move(asked)));
  }
  void expect_connected() {
    const Outcome first = submit(1).wait();
    ASSERT_TRUE(first.status.ok()) << first.status.error().to_string() << "\n" << engine_->describe();
    ASSERT_EQ(first.fabric, tested().fabric);
  }
  // Under way, by a cable that is slow enough for a cut in the middle.
  Transfer begin(uint64_t length, Duration timeout = std::chrono::seconds(300)) {
    cable_->disturb("rate 40mbit");
    const Transfer transfer = submit(length, timeout);
    EXPECT_TRUE(eventually(
        [&] { return transfer.done() || engine_->describe().find(" 0 operations in flight") == std::string::npos; }));
    return transfer;
  }

  std::optional<Cable> cable_;
  std::unique_ptr<Engine> engine_;
  std::vector<std::byte> memory_;
  Region region_;
  std::optional<Target> target_;
};

inline std::string operation_name(const ::testing::TestParamInfo<Operation>& tested) {
  return tested.param == Operation::read ? "read" : "write";
}

}  // namespace kvferry::test
