#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "test/conformance/plugin_config.h"
#include "test/conformance/process_state.h"
#include "test/support/engines.h"
#include "test/support/process.h"
#include "test/support/trial.h"

// What the fabric ofi says where it cannot be used, and what it leaves alone in the process.

namespace kvferry::test {
namespace {

// Those of libfabric's variables that the plug-in sets while it loads the library.
std::vector<std::string> variables() {
  std::vector<std::string> out;
  for (const char* name : {"FI_UNIVERSE_SIZE", "FI_MR_CACHE_MAX_COUNT", "FI_OFI_RXM_BUFFER_SIZE"})
    if (Environment::of_process().get(name)) out.emplace_back(name);
  return out;
}
const std::vector<std::string> kVariablesAtStart = variables();

class OfiPlugin : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_fabric("ofi"); !why.empty()) GTEST_SKIP() << why;
    if (tested_ == nullptr) GTEST_SKIP() << "another fabric's device is under test";
  }
  const PluginCase* const tested_ = case_of("ofi");
};

TEST_F(OfiPlugin, WithoutItsDeviceSaysWhichProviderFoundNone) {
  if (std::filesystem::exists("/sys/class/infiniband") && !std::filesystem::is_empty("/sys/class/infiniband"))
    GTEST_SKIP() << "this machine has an RDMA device";
  const std::string why = why_not(plugin_config({"ofi", ""}));
  EXPECT_NE(why.find("fabric \"ofi\" is not viable here"), std::string::npos) << why;
  EXPECT_NE(why.find("finds no device for the provider \"verbs;ofi_rxm\" at 127.0.0.1"), std::string::npos) << why;
}

TEST_F(OfiPlugin, OfAProviderThatDoesNotExistNamesIt) {
  const std::string why = why_not(plugin_config({"ofi", "smoke-signals"}));
  EXPECT_NE(why.find("finds no device for the provider \"smoke-signals\""), std::string::npos) << why;
}

// They would have to be looked at all the time. (Those of shm are looked at when a peer rings.)
TEST_F(OfiPlugin, OfAProviderWhoseQueuesWakeNobodyIsRefused) {
  const std::string why = why_not(plugin_config({"ofi", "udp;ofi_rxd"}));
  EXPECT_NE(why.find("udp;ofi_rxd: its queues cannot wake a sleeping process"), std::string::npos) << why;
}

TEST_F(OfiPlugin, OfSharedMemoryLeavesTheProcessAlone) {
  const auto engine = must(Engine::create(plugin_config({"ofi", "shm"})));
  const ProcessState now;
  EXPECT_EQ(now.on_segv, kAtStart.on_segv);
  EXPECT_EQ(now.environment, kAtStart.environment);
}

// A process that is killed leaves its shared memory behind.
TEST_F(OfiPlugin, RemovesWhatTheDeadHaveLeftInSharedMemory) {
  Process child = must(Process::spawn("/bin/true"));
  const pid_t dead = child.pid();
  ASSERT_TRUE(child.wait(std::chrono::seconds(10)).ok());
  struct stat numbers {};
  ASSERT_EQ(::stat("/proc/self/ns/pid", &numbers), 0);
  const auto left_by = [](ino_t here, pid_t process) {
    return fmt::format("/dev/shm/kvferry:{}-{}:0:99", here, process);
  };
  const std::string of_dead = left_by(numbers.st_ino, dead);
  // Of one that lives, and of one in a container that shares memory but no process numbers.
  const std::vector<std::string> others = {left_by(numbers.st_ino, ::getpid()), left_by(1, dead)};
  std::ofstream(of_dead) << "left";
  for (const std::string& other : others) std::ofstream(other) << "in use";
  const auto engine = must(Engine::create(plugin_config({"ofi", "shm"})));
  EXPECT_FALSE(std::filesystem::exists(of_dead));
  for (const std::string& other : others) EXPECT_TRUE(std::filesystem::remove(other)) << other;
}

// Its keys are secrets that pass in the clear, and the owner's CPU compares them.
TEST_F(OfiPlugin, ThatChecksNoKeysIsRefusedWherePeersMustProveWhoTheyAre) {
  EngineConfig config = plugin_config({"ofi", "tcp"});
  config.auth = auth_of(AuthMode::psk);
  EXPECT_NE(why_not(config).find("check no keys"), std::string::npos) << why_not(config);
}

// As where another fabric is taken in the end. (Alone in its process: what was opened has put back the handlers.)
TEST_F(OfiPlugin, ThatIsOnlyLoadedLeavesTheProcessesSignalsAlone) {
  EXPECT_EQ(ProcessState().on_segv, kAtStart.on_segv);
}

TEST_F(OfiPlugin, LeavesTheProcessAlone) {
  const auto engine = must(Engine::create(plugin_config(*tested_)));
  std::vector<std::byte> memory(100000);
  const Region region = must(engine->register_memory(memory.data(), memory.size(), MemoryKind::host, kRemoteRead));
  const ProcessState now;
  for (const auto& [call, code] : now.calls) EXPECT_EQ(code, kAtStart.calls.at(call)) << call;
  EXPECT_EQ(now.on_segv, kAtStart.on_segv);
  EXPECT_EQ(now.environment, kAtStart.environment);
  EXPECT_EQ(variables(), kVariablesAtStart) << "settings of libfabric's stay in the environment";
}

// libfabric reads its settings once a process: a second engine with others would not have what it asks for.
TEST_F(OfiPlugin, SaysThatLibfabricHasBegunWithOtherSettings) {
  const auto engine = must(Engine::create(plugin_config(*tested_)));
  EngineConfig config = plugin_config(*tested_);
  config.fabric_settings.push_back({"ofi", "UNIVERSE_SIZE", "128"});
  const std::string why = why_not(config);
  EXPECT_NE(why.find("has begun in this process, with FI_UNIVERSE_SIZE=64 instead of 128"), std::string::npos) << why;
}

TEST_F(OfiPlugin, SaysWhichSettingsLibfabricDoesNotKnow) {
  EngineConfig config = plugin_config(*tested_);
  config.fabric_settings.push_back({"ofi", "UNIVERSAL_SIZE", "128"});
  EXPECT_NE(why_not(config).find("libfabric knows no FI_UNIVERSAL_SIZE"), std::string::npos) << why_not(config);
}

}  // namespace
}  // namespace kvferry::test
