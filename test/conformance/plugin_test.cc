#include <dlfcn.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <future>
#include <list>
#include <thread>

#include "test/conformance/plugin_config.h"
#include "test/support/engines.h"
#include "test/support/eventually.h"
#include "test/support/lines.h"
#include "test/support/sanitized.h"
#include "test/support/silent_port.h"
#include "test/support/stopwatch.h"
#include "test/support/target.h"

// What every plug-in's fabric does besides moving bytes: how it says why it is not there, and what becomes of transfers
// when the owner dies, stops or comes back.

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// ---- the plug-in and its reasons

TEST(FabricPlugin, ThatIsNotThereSaysWhereItWasLookedFor) {
  EngineConfig config = plugin_config(plugin_cases()[0]);
  config.plugin_folder = "/nonexistent";
  EXPECT_NE(why_not(config).find("there is no /nonexistent/libkvferry_fabric_" + std::string(plugin_cases()[0].fabric) +
                                 ".so"),
            std::string::npos)
      << why_not(config);
}

TEST(FabricPlugin, ThatIsNoFabricIsNamed) {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / ("kvf-" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  Dl_info libc{};
  ASSERT_NE(::dladdr(reinterpret_cast<const void*>(&::mmap), &libc), 0);
  std::filesystem::create_symlink(libc.dli_fname,
                                  folder / ("libkvferry_fabric_" + std::string(plugin_cases()[0].fabric) + ".so"));
  EngineConfig config = plugin_config(plugin_cases()[0]);
  config.plugin_folder = folder.string();
  EXPECT_NE(why_not(config).find("is no fabric: it has no kvferry_fabric_v1"), std::string::npos) << why_not(config);
  std::filesystem::remove_all(folder);
}

class Plugin : public ::testing::TestWithParam<PluginCase> {
 protected:
  static constexpr size_t kBytes = size_t{8} << 20;
  static std::string fabric() { return GetParam().fabric; }
  static bool by_shared_memory() { return std::string_view(GetParam().transports) == kOfiSharedMemory.transports; }
  void SetUp() override {
    if (const std::string why = why_no_fabric(fabric()); !why.empty()) GTEST_SKIP() << why;
  }

  Target::Options target_options() {
    Target::Options options;
    options.fabric = fabric();
    options.bytes = kBytes;
    options.heartbeat_ms = 500 * plugin_slower();
    options.environment = {{transports_variable(fabric()), GetParam().transports}, {"KVFERRY_RDMA_HOST", rdma_host()}};
    return options;
  }
  Target start_target() { return Target::start(target_options()); }
  // Of the two libraries, the one that is not under test.
  static PluginCase the_other() {
    if (fabric() == "ucx") return {"ofi", has_rdma_device() ? "verbs" : "tcp"};
    return {"ucx", has_rdma_device() ? "rc_verbs" : "tcp,self"};
  }
  void start_initiator(const std::vector<std::string>& others = {}, Duration connect_timeout = seconds(20)) {
    region_ = Region();
    EngineConfig config = plugin_config(GetParam());
    config.fabrics.insert(config.fabrics.end(), others.begin(), others.end());
    config.fabric_settings.push_back(
        {the_other().fabric, transports_setting(the_other().fabric), the_other().transports});
    config.connect_timeout = connect_timeout;
    config.logger = lines_;
    engine_ = must(Engine::create(std::move(config)));
    memory_.assign(kBytes, std::byte{1});
    region_ = must(engine_->register_memory(memory_.data(), kBytes, MemoryKind::host, kPrivate));
  }
  TransferRequest request(const Target& target, Operation operation, Duration timeout) {
    TransferRequest made;
    made.peer = must(engine_->peer(target.address()));
    made.operation = operation;
    made.pairs = {{memory_.data(), target.region(), 0, kBytes}};
    made.timeout = timeout;
    return made;
  }
  Outcome move(const Target& target, Operation operation) {
    return engine_->transfer(request(target, operation, seconds(30 * kSlower)));
  }

  const std::shared_ptr<Lines> lines_ = std::make_shared<Lines>();
  std::unique_ptr<Engine> engine_;
  std::vector<std::byte> memory_;
  Region region_;
};

// To an owner a client is one connection: a second one would be the end of the first.
TEST_P(Plugin, ServesAPeerByOneOfItsAddressesAtATime) {
  Target::Options options = target_options();
  options.listen = "0.0.0.0:0";
  options.fabric = fabric() + ",tcp";
  options.environment["KVFERRY_ALLOW_OPEN"] = "1";
  Target target = Target::start(options);
  start_initiator({"tcp"});
  const std::string port = target.address().substr(target.address().rfind(':'));
  std::vector<std::string> fabrics;
  for (int round = 0; round < 3; ++round)
    for (const char* host : {"127.0.0.1", "127.0.0.2"}) {
      TransferRequest asked = request(target, Operation::read, seconds(30 * kSlower));
      asked.peer = must(engine_->peer(host + port));
      const Outcome outcome = engine_->transfer(std::move(asked));
      ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
      fabrics.push_back(outcome.fabric);
    }
  EXPECT_EQ(fabrics, (std::vector<std::string>{fabric(), "tcp", fabric(), "tcp", fabric(), "tcp"}));
  EXPECT_NE(engine_->describe().find("used already, by another address of this peer"), std::string::npos);
}

// Memory that peers reach by themselves is given back as soon as they have said that they are through: no connection is
// ended over it.
TEST_P(Plugin, IsNotCutOffByAnOwnerThatTakesRegionsBack) {
  EngineConfig config = plugin_config(GetParam());
  const auto owner = must(Engine::create(config));
  start_initiator();
  std::vector<std::byte> memory(4096, std::byte{3});
  const PeerRef peer = must(engine_->peer(owner->address()));
  for (int round = 0; round < 20; ++round) {
    Region region = must(owner->register_memory(memory.data(), memory.size(), MemoryKind::host, kRemoteReadWrite));
    TransferRequest asked;
    asked.peer = peer;
    asked.operation = round % 2 ? Operation::read : Operation::write;
    asked.pairs = {{memory_.data(), region.id(), 0, memory.size()}};
    const Outcome outcome = engine_->transfer(std::move(asked));
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
    ASSERT_TRUE(region.unregister().ok());
  }
  EXPECT_NE(owner->describe().find("; 0 peers cut off"), std::string::npos) << owner->describe();
}

size_t open_descriptors() {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

// I6: connections that come and go leave no descriptors behind, of which each has some at either side.
TEST_P(Plugin, KeepsNoDescriptorsOfConnectionsThatHaveEnded) {
  EngineConfig config = plugin_config(GetParam());
  const auto owner = must(Engine::create(config));
  std::vector<std::byte> memory(4096, std::byte{3});
  const Region region = must(owner->register_memory(memory.data(), memory.size(), MemoryKind::host, kRemoteRead));
  size_t before = SIZE_MAX;
  for (int round = 0; round < (has_rdma_device() ? 12 : 40); ++round) {
    start_initiator();
    TransferRequest asked;
    asked.peer = must(engine_->peer(owner->address()));
    asked.operation = Operation::read;
    asked.pairs = {{memory_.data(), region.id(), 0, memory.size()}};
    const Outcome outcome = engine_->transfer(std::move(asked));
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
    region_ = Region();
    engine_.reset();
    if (round < 4) before = std::min(before, open_descriptors());  // what is made once has been made
  }
  EXPECT_TRUE(eventually([&] { return open_descriptors() <= before + 2; })) << before << " " << open_descriptors();
}

// ---- faults

// I4, I5: who is too slow to let go of a region loses its connection, and what it wrote there, nothing else. Only its
// next connection ends what it had under way, so it must be let in before it can say that it is quiet.
TEST_P(Plugin, ServesAPeerAgainThatItHasCutOff) {
  std::list<std::vector<std::byte>> taken;  // outlives the owner, which may have it in quarantine
  std::vector<std::byte> kept(4096, std::byte{3});
  const auto owner = must(Engine::create(plugin_config(GetParam())));
  start_initiator();
  const PeerRef peer = must(engine_->peer(owner->address()));
  const Region other = must(owner->register_memory(kept.data(), kept.size(), MemoryKind::host, kRemoteReadWrite));
  const auto ask = [&](Operation operation, RegionId region, uint64_t length) {
    TransferRequest asked;
    asked.peer = peer;
    asked.operation = operation;
    asked.pairs = {{memory_.data(), region, 0, length}};
    asked.timeout = seconds(60 * kSlower);
    return must(engine_->submit(std::move(asked)));
  };
  ASSERT_TRUE(ask(Operation::read, other.id(), kept.size()).wait().status.ok());
  const auto here = std::this_thread::get_id();
  int cut_off = 0;
  for (int round = 0; round < 20 && cut_off == 0; ++round) {
    taken.emplace_back(kBytes);
    Region region = must(owner->register_memory(taken.back().data(), kBytes, MemoryKind::host, kRemoteReadWrite));
    ASSERT_TRUE(peer.sync(seconds(60 * kSlower)).ok());
    const Transfer write = ask(Operation::write, region.id(), kBytes);
    std::promise<void> stands_still, goes_on;
    must(engine_->notify(peer, {"name", "payload"})).on_done([&](const Outcome&) {
      stands_still.set_value();
      if (std::this_thread::get_id() != here) goes_on.get_future().wait();  // with the initiator's loop
    });
    stands_still.get_future().wait();
    const Status unregistered = region.unregister(seconds(1));
    goes_on.set_value();
    EXPECT_TRUE(unregistered.ok() || unregistered.error().code == ErrorCode::not_quiet);
    cut_off += !write.wait().status.ok();
  }
  ASSERT_EQ(cut_off, 1) << "no write was under way";
  EXPECT_EQ(owner->describe().find("; 0 peers cut off"), std::string::npos) << owner->describe();
  const Outcome after = ask(Operation::read, other.id(), kept.size()).wait();
  ASSERT_TRUE(after.status.ok()) << after.status.error().to_string();
  EXPECT_EQ(after.fabric, fabric());
  EXPECT_TRUE(eventually([&] { return owner->describe().find("\"quarantined\":[]") != std::string::npos; }));
}

// Where no connection can be made, tcp stands in: for what waited for it, and at once for what comes later.
TEST_P(Plugin, LeavesToTcpWhatItCannotReach) {
  Target::Options options = target_options();
  options.fabric = fabric() + ",tcp";
  if (fabric() == "ucx")
    options.environment["KVFERRY_UCX_TLS"] = "sysv,self";  // of which the initiator has none
  else if (has_rdma_device() || by_shared_memory())
    options.environment["KVFERRY_OFI_PROVIDER"] = "tcp";  // where the initiator's provider finds nobody
  else
    options.environment["KVFERRY_RDMA_HOST"] = "::1";  // whose family the initiator has no socket of
  Target target = Target::start(options);
  start_initiator({"tcp"}, seconds(3));
  ASSERT_EQ(target.ask("fill 7"), "ok");
  for (int round = 0; round < 3; ++round) {
    const Outcome outcome = move(target, round % 2 ? Operation::write : Operation::read);
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
    EXPECT_EQ(outcome.fabric, "tcp");
    EXPECT_EQ(memory_.back(), std::byte{7});
  }
  // Said, and said once.
  const std::string said = lines_->text(), line = fabric() + " cannot connect to ";
  const size_t first = said.find(line);
  ASSERT_NE(first, std::string::npos) << said;
  EXPECT_EQ(said.find(line, first + 1), std::string::npos) << said;
}

TEST_P(Plugin, MovesBytesAndSaysByWhat) {
  Target target = start_target();
  start_initiator();
  ASSERT_EQ(target.ask("fill 7"), "ok");
  const Outcome read = move(target, Operation::read);
  ASSERT_TRUE(read.status.ok()) << read.status.error().to_string();
  EXPECT_EQ(read.fabric, fabric());
  EXPECT_EQ(memory_.front(), std::byte{7});
  EXPECT_EQ(memory_.back(), std::byte{7});
  std::fill(memory_.begin(), memory_.end(), std::byte{9});
  const Outcome write = move(target, Operation::write);
  ASSERT_TRUE(write.status.ok()) << write.status.error().to_string();
  // I8: seen from outside, without a word of the target's.
  EXPECT_EQ(target.memory(), memory_);
  const std::string described = engine_->describe();
  EXPECT_NE(described.find("\"fabric\":\"" + fabric() + "\""), std::string::npos) << described;
  EXPECT_NE(described.find(GetParam().transports), std::string::npos) << described;
  EXPECT_EQ(described.find("emulated: for trusted peers only") == std::string::npos, has_rdma_device()) << described;
}

TEST_P(Plugin, EndsTransfersWhenTheOwnerDiesAndServesItsSuccessor) {
  if (by_shared_memory()) GTEST_SKIP() << "who is killed may hold a lock there";
  Target target = start_target();
  start_initiator();
  ASSERT_TRUE(move(target, Operation::read).status.ok());
  std::vector<Transfer> all;
  for (int i = 0; i < 30; ++i) {
    all.push_back(must(engine_->submit(request(target, i % 2 ? Operation::read : Operation::write, seconds(30)))));
    // Some are under way, or over where this thread was slow; those behind find an owner that cannot serve them.
    if (i == 19) {
      ASSERT_TRUE(target.process().stop().ok());
    }
  }
  ASSERT_TRUE(target.process().kill().ok());
  int failed = 0;
  for (const Transfer& transfer : all) {
    const auto outcome = transfer.wait_for(seconds(20 * plugin_slower()));
    ASSERT_TRUE(outcome.has_value());
    failed += !outcome->status.ok();
  }
  EXPECT_GT(failed, 0);
  const std::vector<std::byte> quiet = memory_;
  Target next = Target::start(target.successor());
  ASSERT_EQ(next.ask("fill 5"), "ok");
  EXPECT_EQ(memory_, quiet) << "written to after the outcome";
  Outcome again;
  ASSERT_TRUE(eventually([&] {
    again = move(next, Operation::read);
    return again.status.ok();
  })) << again.status.error().to_string();
  EXPECT_EQ(memory_.back(), std::byte{5});
}

// I3, I4: a stopped owner of an emulated fabric answers nothing; the outcome comes by the deadline all the same.
TEST_P(Plugin, ComesToItsDeadlineWhenTheOwnerIsStopped) {
  if (has_rdma_device()) GTEST_SKIP() << "a device serves for it (test/rdma_vm/owner_test.cc)";
  for (const Operation operation : {Operation::read, Operation::write}) {
    Target target = start_target();
    start_initiator();
    ASSERT_TRUE(move(target, Operation::read).status.ok());
    ASSERT_TRUE(target.process().stop().ok());
    const Stopwatch watch;
    const Outcome outcome = engine_->transfer(request(target, operation, milliseconds(400)));
    ASSERT_FALSE(outcome.status.ok());
    EXPECT_LT(watch.elapsed(), seconds(4 * kSlower));
    EXPECT_EQ(outcome.remote, operation == Operation::write ? RemoteQuiet::unknown : RemoteQuiet::quiet);
    EXPECT_TRUE(region_.unregister().ok()) << "our own memory is quiet";
  }
}

// I8: a write that fits into the buffers on its way is not done with that.
TEST_P(Plugin, DoesNotCallAWriteDoneThatAStoppedOwnerHasNotGot) {
  if (has_rdma_device()) GTEST_SKIP() << "a device serves for it (test/rdma_vm/owner_test.cc)";
  Target target = start_target();
  start_initiator();
  ASSERT_TRUE(move(target, Operation::write).status.ok());
  ASSERT_TRUE(target.process().stop().ok());
  TransferRequest small = request(target, Operation::write, milliseconds(400));
  small.pairs[0].length = 100;
  const Outcome outcome = engine_->transfer(std::move(small));
  EXPECT_FALSE(outcome.status.ok());
  EXPECT_EQ(outcome.remote, RemoteQuiet::unknown);
}

// How often the threads of a process have been woken.
uint64_t wake_ups(pid_t pid) {
  uint64_t sum = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
    std::ifstream status(task.path() / "status");
    for (std::string line; std::getline(status, line);)
      if (line.starts_with("voluntary_ctxt_switches:")) sum += std::stoull(line.substr(line.find(':') + 1));
  }
  return sum;
}

// Each is mapped, and its key packed, before the call returns.
TEST_P(Plugin, RegistersAThousandRegionsInLessThan50Milliseconds) {
  constexpr size_t kRegions = 1000, kLength = size_t{64} << 10;
  std::vector<std::byte> memory(kRegions * kLength);
  start_initiator();
  auto spent = std::chrono::steady_clock::duration::max();
  // In a guest without hardware support everything takes longer, and so it does under a sanitizer.
  const auto limit = milliseconds(kSanitized ? 2000 : 50) * plugin_slower();
  for (int round = 0; round < 30 && spent >= limit; ++round) {  // the best: others may have the cores meanwhile
    std::vector<Region> regions;
    const auto began = std::chrono::steady_clock::now();
    for (size_t i = 0; i < kRegions; ++i)
      regions.push_back(
          must(engine_->register_memory(memory.data() + i * kLength, kLength, MemoryKind::host, kRemoteReadWrite)));
    spent = std::min(spent, std::chrono::steady_clock::now() - began);
  }
  std::printf("%.1f ms over %s\n", std::chrono::duration<double>(spent).count() * 1e3, GetParam().transports);
  EXPECT_LT(spent, limit);
}

// I6, no polling: what waits for nothing costs nothing, nor does the other plug-in that is open beside it. 100 wake-ups
// a second, of 50 us at most, are half a percent of a core.
TEST_P(Plugin, CostsNothingWhileIdleBesideTheOther) {
  Target::Options options = target_options();
  std::vector<std::string> others;
  if (const PluginCase other = the_other(); why_no_fabric(other.fabric).empty()) {
    others.emplace_back(other.fabric);
    options.fabric += "," + others[0];
    options.environment[transports_variable(other.fabric)] = other.transports;
  }
  Target target = Target::start(options);
  start_initiator(others);
  ASSERT_TRUE(move(target, Operation::read).status.ok());
  for (const std::string& other : others)
    EXPECT_NE(engine_->describe().find("\"" + other + "\":"), std::string::npos) << engine_->describe();
  const auto used = [] {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    return seconds(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           std::chrono::microseconds(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
  };
  const auto limit = milliseconds(20 * plugin_slower());  // half a hundredth of the wait
  constexpr uint64_t kWakeUps = 4 * 100;
  // Nobody answers there: the wait is as long as its deadline.
  const SilentPort port;
  TransferRequest silent = request(target, Operation::read, seconds(4));
  silent.peer = must(engine_->peer(port.address()));
  Duration here = limit, there = limit;
  uint64_t woken_here = kWakeUps, woken_there = kWakeUps;
  // The best of a few: a processor's stand-still counts for who was on it.
  for (int round = 0; round < 5 && (here >= limit || there >= limit); ++round) {
    const Duration before = used();
    const uint64_t woken = wake_ups(::getpid()), target_woken = wake_ups(target.process().pid());
    const Duration target_before = must(target.process().cpu_time());
    EXPECT_FALSE(engine_->transfer(silent).status.ok());
    here = std::min<Duration>(here, used() - before);
    there = std::min(there, must(target.process().cpu_time()) - target_before);
    woken_here = std::min(woken_here, wake_ups(::getpid()) - woken);
    woken_there = std::min(woken_there, wake_ups(target.process().pid()) - target_woken);
  }
  EXPECT_LT(here, limit);
  EXPECT_LT(there, limit);
  EXPECT_LT(woken_here, kWakeUps);
  EXPECT_LT(woken_there, kWakeUps);
  std::printf("%.1f ms of CPU in 4 s here\n", std::chrono::duration<double>(here).count() * 1e3);
}

std::vector<PluginCase> cases() {
  std::vector<PluginCase> out = plugin_cases();
  if (!has_rdma_device()) out.push_back(kOfiSharedMemory);
  return out;
}

INSTANTIATE_TEST_SUITE_P(All, Plugin, ::testing::ValuesIn(cases()),
                         [](const ::testing::TestParamInfo<PluginCase>& tested) {
                           return tested.param.fabric + name_of_transports(tested.param.transports);
                         });

}  // namespace
}  // namespace kvferry::test
