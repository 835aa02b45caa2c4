#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <vector>

#include "test/conformance/plugin_config.h"
#include "test/conformance/process_state.h"
#include "test/support/engines.h"
#include "test/support/process.h"
#include "test/support/sanitized.h"
#include "test/support/trial.h"

// What the fabric ucx says where it cannot be used, and what it leaves alone in the process.

namespace kvferry::test {
namespace {

class UcxPlugin : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_fabric("ucx"); !why.empty()) GTEST_SKIP() << why;
    if (tested_ == nullptr) GTEST_SKIP() << "another fabric's device is under test";
  }
  const PluginCase* const tested_ = case_of("ucx");
};

TEST_F(UcxPlugin, WithoutItsDeviceSaysWhichTransportsFoundNone) {
  if (std::filesystem::exists("/sys/class/infiniband") && !std::filesystem::is_empty("/sys/class/infiniband"))
    GTEST_SKIP() << "this machine has an RDMA device";
  const std::string why = why_not(plugin_config({"ucx", ""}));
  EXPECT_NE(why.find("finds no device for the transports \"rc\""), std::string::npos) << why;
}

// Emulated, UCX believes every address: whoever reaches its port could read and write the process.
TEST_F(UcxPlugin, ThatChecksNoKeysIsRefusedWherePeersMustProveWhoTheyAre) {
  EngineConfig config = plugin_config({"ucx", "tcp,self"});
  config.auth = auth_of(AuthMode::psk);
  EXPECT_NE(why_not(config).find("check no keys"), std::string::npos) << why_not(config);
}

// Hooks would run UCX's code in every mmap of the process; its handlers would take its crashes.
TEST_F(UcxPlugin, LeavesTheProcessesMemoryCallsAndSignalsAlone) {
  const auto engine = must(Engine::create(plugin_config(*tested_)));
  std::vector<std::byte> memory(100000);
  const Region region = must(engine->register_memory(memory.data(), memory.size(), MemoryKind::host, kRemoteRead));
  const ProcessState now;
  for (const auto& [call, code] : now.calls) EXPECT_EQ(code, kAtStart.calls.at(call)) << call;
  EXPECT_EQ(now.on_segv, kAtStart.on_segv);
  EXPECT_EQ(now.environment, kAtStart.environment);
}

// The test above can fail: it does where the user wants the hooks, whose word stays.
TEST_F(UcxPlugin, IsSeenToHookMemoryCallsWhereTheEnvironmentAsksForIt) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer has hooks of its own in these calls";
  ProcessOptions options;
  options.arguments = {"--gtest_filter=UcxPlugin.LeavesTheProcessesMemoryCallsAndSignalsAlone"};
  options.environment = {{"UCX_MEM_MMAP_HOOK_MODE", "bistro"}};
  Process child = must(Process::spawn(std::filesystem::read_symlink("/proc/self/exe").string(), options));
  EXPECT_TRUE(child.read_line_with("munmap", std::chrono::seconds(30)).ok());
  EXPECT_TRUE(child.read_line_with("[  FAILED  ]", std::chrono::seconds(30)).ok());
}

}  // namespace
}  // namespace kvferry::test
