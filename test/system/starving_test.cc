#include <fcntl.h>
#include <sys/resource.h>

#include "test/system/faults.h"

// Processes that run out of descriptors or memory.

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr size_t kBytes = size_t{8} << 20;

Target small_target() {
  Target::Options options;
  options.bytes = kBytes;
  return Target::start(options);
}

// The owner cannot accept: whoever comes waits until its own deadline; whoever is there goes on.
TEST(Starving, AnOwnerOutOfDescriptorsKeepsItsSessionsAndRecovers) {
  Target target = small_target();
  Initiator first("tcp", kBytes);
  expect_works(first, target);
  const size_t open = must(target.process().open_files());
  ASSERT_EQ(target.ask("descriptors " + std::to_string(open)), "ok");
  {
    Initiator second("tcp", kBytes);
    const Stopwatch watch;
    const Outcome outcome = second.engine().transfer(second.request(target, Operation::write, milliseconds(800)));
    EXPECT_FALSE(outcome.status.ok());
    EXPECT_LT(watch.elapsed(), milliseconds(800) + kSlack);
    expect_works(first, target);
  }
  const Duration before = must(target.process().cpu_time());
  const SystemClock clock;
  const TimePoint until = clock.now() + milliseconds(500);
  ASSERT_TRUE(eventually([&] { return clock.now() > until; }));
  EXPECT_LT(must(target.process().cpu_time()) - before, milliseconds(100)) << "it spins";
  expect_works(first, target);
}

// Takes all descriptors of this process that are left, until it is destroyed.
class Hoard {
 public:
  Hoard() {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    rlimit low = before_;
    low.rlim_cur = 200;
    ::setrlimit(RLIMIT_NOFILE, &low);
    while (true) {
      UniqueFd fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
      if (!fd) break;
      held_.push_back(std::move(fd));
    }
  }
  ~Hoard() { ::setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_{};
  std::vector<UniqueFd> held_;
};

TEST(Starving, AnInitiatorOutOfDescriptorsFailsAtOnceAndRecovers) {
  Target target = small_target();
  Initiator initiator("tcp", kBytes);
  const TransferRequest asked = initiator.request(target, Operation::write, seconds(20));
  {
    const Hoard hoard;
    const Outcome outcome = initiator.engine().transfer(asked);
    ASSERT_FALSE(outcome.status.ok());
    EXPECT_NE(text_of(outcome).find("Too many open files"), std::string::npos) << text_of(outcome);
    EXPECT_FALSE(Engine::create(EngineConfig()).ok());
  }
  expect_works(initiator, target);
}

TEST(Starving, AnInitiatorOutOfDescriptorsForItsLanesFailsAndRecovers) {
  Target target = small_target();
  Initiator initiator("tcp", kBytes);
  ASSERT_TRUE(must(initiator.engine().peer(target.address())).connect(seconds(20)).ok());
  {
    const Hoard hoard;
    const Outcome outcome = initiator.engine().transfer(initiator.request(target, Operation::write, seconds(20)));
    ASSERT_FALSE(outcome.status.ok());
    EXPECT_NE(text_of(outcome).find("Too many open files"), std::string::npos) << text_of(outcome);
  }
  expect_works(initiator, target);
}

// Memory that a peer makes an engine take is bounded by its limits, not by what the peer sends.
TEST(Starving, AnOwnerWithLittleMemoryServesLargeTransfersOfManyPeers) {
  Target target = small_target();
  if (const std::string answer = target.ask("memory 134217728"); answer != "ok") GTEST_SKIP() << answer;
  std::vector<std::unique_ptr<Initiator>> initiators;
  for (int i = 0; i < 6; ++i) initiators.push_back(std::make_unique<Initiator>("tcp", kBytes));
  std::vector<Transfer> all;
  for (const auto& initiator : initiators)
    for (const Operation operation : {Operation::write, Operation::read, Operation::write})
      all.push_back(must(initiator->engine().submit(initiator->request(target, operation, seconds(60)))));
  for (const Transfer& transfer : all) EXPECT_EQ(text_of(transfer.wait()), "ok");
  expect_works(*initiators[0], target);
}

}  // namespace
}  // namespace kvferry::test
