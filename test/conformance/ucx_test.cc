#include <gtest/gtest.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

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

// What the sockets of this process have sent and been answered for.
uint64_t bytes_by_sockets() {
  uint64_t sum = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    tcp_info info{};
    socklen_t size = sizeof info;
    const int fd = std::stoi(entry.path().filename().string());
    if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0) sum += info.tcpi_bytes_acked;
  }
  return sum;
}

// What the suites' cases with posix in their names build on: UCX passes over it in silence where it has a reason.
TEST_F(UcxPlugin, MovesBytesBySharedMemoryWhereItIsToldTo) {
  if (has_rdma_device()) GTEST_SKIP() << "a device is under test";
  constexpr size_t kBytes = size_t{8} << 20;
  for (const bool shared : {true, false}) {
    const char* transports = shared ? "posix,tcp,self" : "tcp,self";
    EngineConfig config = plugin_config({"ucx", transports});
    use_shared_memory(config, transports);
    const auto owner = must(Engine::create(config));
    const auto initiator = must(Engine::create(config));
    std::vector<std::byte> theirs(kBytes, std::byte{5}), ours(kBytes);
    const Region region = must(owner->register_memory(theirs.data(), kBytes, MemoryKind::host, kRemoteRead));
    const Region landing = must(initiator->register_memory(ours.data(), kBytes, MemoryKind::host, kPrivate));
    TransferRequest asked;
    asked.peer = must(initiator->peer(owner->address()));
    asked.operation = Operation::read;
    asked.pairs = {{ours.data(), region.id(), 0, kBytes}};
    const Outcome outcome = initiator->transfer(std::move(asked));
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
    EXPECT_EQ(ours, theirs);
    EXPECT_EQ(bytes_by_sockets() < kBytes / 8, shared) << bytes_by_sockets();
  }
}

}  // namespace
}  // namespace kvferry::test
