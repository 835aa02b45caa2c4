#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/bench/cases.h"
#include "engine/bench/goals.h"
#include "engine/bench/pool.h"
#include "engine/bench/samples.h"
#include "test/support/process.h"
#include "test/support/sanitized.h"

namespace kvferry::bench {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr Duration kPatience = std::chrono::seconds(60);

struct Finished {
  int exit_status = -1;
  std::string output;
};

Finished run_bench(std::vector<std::string> arguments, std::map<std::string, std::string> environment = {}) {
  test::ProcessOptions options;
  options.environment = std::move(environment);
  options.arguments = std::move(arguments);
  options.merge_stderr = true;
  auto process = test::Process::spawn(KVF_BENCH, options);
  Finished run;
  if (!process.ok()) {
    ADD_FAILURE() << process.error().to_string();
    return run;
  }
  for (auto line = process->read_line(kPatience); line.ok(); line = process->read_line(kPatience))
    run.output += *line + '\n';
  auto end = process->wait(kPatience);
  if (end.ok()) run.exit_status = end->exit_status;
  return run;
}

TEST(Bench, MovesAndVerifiesEveryByteOfEveryKindOfCase) {
  const Finished run = run_bench({"--block", "64,4K", "--count", "1,48", "--threads", "1,2", "--layout",
                                  "scattered,contiguous", "--pool", "4M", "--seconds", "0.001", "--verify"});
  EXPECT_EQ(run.exit_status, 0) << run.output;
  EXPECT_THAT(run.output, HasSubstr("every byte of 64 cases verified"));
}

// Where the plug-in is not built, or UCX finds no device, its reason is what is said of it.
TEST(Bench, SaysWhichFabricsAreViableOnThisHostAndWhy) {
  const Finished run = run_bench({"--doctor"});
  EXPECT_EQ(run.exit_status, 0) << run.output;
  EXPECT_THAT(run.output, HasSubstr("fabric  tcp: viable, named by KVFERRY_FABRICS or its default"));
  EXPECT_THAT(run.output, ContainsRegex("fabric  ucx: (viable|not viable here), not named by KVFERRY_FABRICS"));
  EXPECT_THAT(run.output, ContainsRegex("link    lo: "));
  EXPECT_THAT(run.output, ContainsRegex("rdma    [a-z]"));
  EXPECT_THAT(run.output, ContainsRegex("rdma    topology: (hwloc .API 2|/sys .)"));
  EXPECT_THAT(run.output, HasSubstr("limit   locked memory (ulimit -l): "));
}

TEST(Bench, SaysWhatHwlocWasTold) {
  const Finished run = run_bench({"--doctor"}, {{"HWLOC_COMPONENTS", "linux,stop"}});
  EXPECT_THAT(run.output, ContainsRegex("rdma    topology: .*, HWLOC_COMPONENTS=linux,stop\n"));
}

TEST(Bench, SaysWhatTheWordRdmaComesToOnThisHost) {
  const Finished run = run_bench({"--doctor"}, {{"KVFERRY_FABRICS", "local,rdma,tcp"}});
  EXPECT_EQ(run.exit_status, 0) << run.output;
  EXPECT_THAT(run.output, ContainsRegex(R"(choice  rdma: \{"fabric":(null|"ucx"|"ofi"),"why":"..*"\})"));
}

// The fake driver has two GPUs, which NICs reach by themselves.
TEST(Bench, SaysHowNicsReachTheMemoryOfGpus) {
  const Finished run = run_bench({"--doctor"}, {{"KVFERRY_CUDA_DRIVER", KVF_FAKE_CUDA}});
  EXPECT_EQ(run.exit_status, 0) << run.output;
  for (const char* gpu : {"0", "1"})
    EXPECT_THAT(run.output, HasSubstr(std::string("gpu     ") + gpu +
                                      ": GPUDirect RDMA yes, dma_buf yes, what NICs write is ordered\n"));
  EXPECT_THAT(run.output, ContainsRegex("gpu     nvidia_peermem is (not )?loaded"));
  const Finished without = run_bench({"--doctor"}, {{"KVFERRY_CUDA_DRIVER", "no-such-driver.so"}});
  EXPECT_THAT(without.output, ContainsRegex("gpu     none: .*no-such-driver.so"));
}

TEST(Bench, MeasuresTheFabricOfAPlugIn) {
  if (test::kThreadsSanitized) GTEST_SKIP() << "UCX is not built for ThreadSanitizer, which does not see into it";
  const std::map<std::string, std::string> environment = {{"KVFERRY_UCX_TLS", "tcp,self"}};
  const Finished doctor = run_bench({"--doctor"}, environment);
  if (doctor.output.find("fabric  ucx: viable") == std::string::npos) GTEST_SKIP() << doctor.output;
  const Finished run = run_bench(
      {"--fabric", "ucx", "--block", "4K", "--count", "1,48", "--pool", "4M", "--seconds", "0.001", "--verify"},
      environment);
  EXPECT_EQ(run.exit_status, 0) << run.output;
  EXPECT_THAT(run.output, HasSubstr("every byte of 4 cases verified"));
}

TEST(Bench, PrintsAMachineReadableDocument) {
  const Finished run = run_bench(
      {"--block", "4K", "--fabric", "tcp", "--op", "read", "--pool", "1M", "--seconds", "0.001", "--json", "-"});
  EXPECT_EQ(run.exit_status, 0) << run.output;
  EXPECT_THAT(run.output, HasSubstr(R"("fabric":"tcp","operation":"read","block":4096)"));
  EXPECT_THAT(run.output, ContainsRegex(R"("limit_us":\{"samples":[1-9])"));
  EXPECT_THAT(run.output, Not(HasSubstr("\r"))) << "progress belongs on a terminal";
}

TEST(Bench, CheckSeesAProductThatIsSlowedDown) {
  // 50 ms more a transfer is over every goal that these cases have, on any machine.
  const Finished run = run_bench({"--block", "4K", "--count", "1,256", "--op", "read", "--pool", "16M", "--seconds",
                                  "0.001", "--burst", "1", "--slow-us", "50000", "--check"});
  EXPECT_EQ(run.exit_status, 1) << run.output;
  EXPECT_THAT(run.output, HasSubstr("0 of 4 goals reached"));
}

TEST(Bench, CheckRefusesToPassWithoutAGoal) {
  const Finished run = run_bench({"--block", "8K", "--pool", "1M", "--seconds", "0.001", "--check"});
  EXPECT_EQ(run.exit_status, 1) << run.output;
  EXPECT_THAT(run.output, HasSubstr("no goal is set"));
}

TEST(Bench, ControlFiguresOfFirstContactAreMeasured) {
  const Finished run = run_bench({"--controls", "contact"});
  EXPECT_EQ(run.exit_status, 0) << run.output;
  EXPECT_THAT(run.output, HasSubstr("tcp, 4096 regions"));
}

TEST(BenchGoals, AreJudgedByTheMediansOfOneRun) {
  const Case batch{"tcp", Operation::read, 4096, 256, true, 1};
  EXPECT_TRUE(judge(batch, {125, 100, 0})->reached);
  EXPECT_FALSE(judge(batch, {126, 100, 0})->reached);
  EXPECT_FALSE(judge(batch, {100, 0, 0})->reached) << "a limit that was not measured proves nothing";
  const Case single{"tcp", Operation::read, 4096, 1, true, 1};
  EXPECT_TRUE(judge(single, {30, 20, 0})->reached);
  EXPECT_FALSE(judge(single, {31, 20, 0})->reached);
  EXPECT_TRUE(judge(single, {130, 100, 0})->reached);
  EXPECT_FALSE(judge(single, {131, 100, 0})->reached);
  const Case bulk{"tcp", Operation::read, uint64_t{64} << 20, 1, true, 1};
  EXPECT_TRUE(judge(bulk, {100, 96, 91})->reached);
  EXPECT_FALSE(judge(bulk, {100, 94, 91})->reached);
  EXPECT_FALSE(judge(bulk, {100, 96, 89})->reached);
  EXPECT_FALSE(judge({"tcp", Operation::read, 8192, 1, true, 1}, {1, 1, 1}).has_value());
}

TEST(BenchCases, BlocksOfOneCaseNeverOverlap) {
  const uint64_t pool = uint64_t{8} << 20;
  for (const bool scattered : {true, false}) {
    const Case tested{"tcp", Operation::read, 4096, 100, scattered, 3};
    std::vector<uint64_t> all;
    for (int thread = 0; thread < tested.threads; ++thread)
      for (const uint64_t offset : block_offsets(tested, Side::remote, thread, pool)) all.push_back(offset);
    std::sort(all.begin(), all.end());
    for (size_t i = 1; i < all.size(); ++i) EXPECT_GE(all[i], all[i - 1] + tested.block);
    EXPECT_LE(all.back() + tested.block, pool);
    EXPECT_EQ(*case_from_line(to_line(tested)), tested);
  }
}

TEST(BenchPool, OneWrongByteIsFound) {
  auto created = Pool::create(1 << 16);
  ASSERT_TRUE(created.ok());
  const std::unique_ptr<Pool> pool = std::move(*created);
  pool->fill(3);
  EXPECT_TRUE(check_pool(*pool, 3, {}, 0).ok());
  pool->base()[40001] ^= std::byte{1};
  EXPECT_FALSE(check_pool(*pool, 3, {}, 0).ok());
}

TEST(BenchSamples, PercentilesAreValuesThatOccurred) {
  Samples samples;
  EXPECT_EQ(samples.median(), 0);
  for (int i = 100; i > 0; --i) samples.add(i);
  EXPECT_EQ(samples.percentile(0.5), 50);
  EXPECT_EQ(samples.percentile(0.99), 99);
  EXPECT_EQ(samples.percentile(0.999), 100);
}

}  // namespace
}  // namespace kvferry::bench
