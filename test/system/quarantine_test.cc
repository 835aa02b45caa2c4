#include <gmock/gmock.h>
#include <poll.h>
#include <signal.h>

#include "test/system/faults.h"

// I4 on one host: an owner takes its memory back while another process is in the middle of copying into it.

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class Quarantine : public ::testing::Test {
 protected:
  static constexpr size_t kBytes = size_t{64} << 20;

  void SetUp() override { start(100 * kSlower); }

  void start(int heartbeat_ms) {
    writer_.reset();
    region_ = Region();
    heartbeat_ms_ = heartbeat_ms;
    EngineConfig config;
    config.engine_id = "owner";
    config.fabrics = {"local"};
    config.heartbeat = milliseconds(heartbeat_ms);
    config.logger = make_null_logger();
    owner_ = must(Engine::create(config));
    memory_.resize(kBytes);
    region_ = must(owner_->register_memory(memory_.data(), kBytes, MemoryKind::host, kRemoteReadWrite));
    fd_ = must(owner_->completion_fd());
    start_writer();
  }

  void start_writer() {
    Target::Options options;
    options.id = "writer";
    options.fabric = "local";
    options.bytes = kBytes;
    options.heartbeat_ms = heartbeat_ms_;
    options.missed_heartbeats = 3;
    writer_.emplace(Target::start(options));
    ASSERT_EQ(writer_->ask("fill 7"), "ok");
    std::fill(memory_.begin(), memory_.end(), std::byte{0});  // whoever wrote before is dead
    const std::vector<std::byte> before = look();
    ASSERT_EQ(writer_->ask("storm " + owner_->address()), "storming");
    ASSERT_TRUE(eventually([&] { return look() != before; })) << "the writer never wrote";
  }

  // Stops the writer in the middle of a copy; false when that never succeeded. It is in one nearly always; stopped
  // between two it holds nothing, and another moment has to be found.
  bool stop_in_a_copy() {
    for (int attempt = 0; attempt < 100; ++attempt) {
      EXPECT_TRUE(writer_->process().stop().ok());
      const Status said = region_.unregister(milliseconds(100));
      if (!said.ok()) {
        EXPECT_EQ(said.error().code, ErrorCode::not_quiet) << said.error().to_string();
        return true;
      }
      region_ = must(owner_->register_memory(memory_.data(), kBytes, MemoryKind::host, kRemoteReadWrite));
      start_writer();
    }
    return false;
  }

  // Kills the writer in the middle of a copy, which shows in memory that it has filled in part; with a child of it that
  // lives on. Then the owner takes its memory back.
  void expect_killed_writer_holds_nothing(bool with_child) {
    bool in_the_middle = false;
    for (int attempt = 0; attempt < 30 && !in_the_middle; ++attempt) {
      pid_t child = 0;
      if (with_child) {
        const std::string answer = writer_->ask("fork");
        ASSERT_TRUE(answer.starts_with("forked ")) << answer;
        child = static_cast<pid_t>(std::stol(answer.substr(7)));
      }
      ASSERT_TRUE(writer_->process().kill().ok());
      const std::vector<std::byte> left = look();
      in_the_middle = std::count(left.begin(), left.end(), left.front()) < static_cast<ptrdiff_t>(kBytes);
      const Stopwatch watch;
      EXPECT_TRUE(region_.unregister(seconds(30)).ok());
      EXPECT_LT(watch.elapsed(), seconds(1));
      if (child != 0) {
        EXPECT_EQ(::kill(child, SIGKILL), 0);
      }
      EXPECT_TRUE(look() == left);
      region_ = must(owner_->register_memory(memory_.data(), kBytes, MemoryKind::host, kRemoteReadWrite));
      if (!in_the_middle) start_writer();
    }
    EXPECT_TRUE(in_the_middle) << "no kill came in the middle of a copy";
  }

  // By a system call: another process is writing there.
  std::vector<std::byte> look() {
    std::vector<std::byte> out(kBytes);
    const iovec ours{out.data(), kBytes};
    const iovec theirs{memory_.data(), kBytes};
    KVF_CHECK(::process_vm_readv(::getpid(), &ours, 1, &theirs, 1, 0) == static_cast<ssize_t>(kBytes));
    return out;
  }
  Status register_again() {
    auto region = owner_->register_memory(memory_.data() + 4096, 4096, MemoryKind::host, kRemoteReadWrite);
    if (!region.ok()) return region.error();
    return region->unregister();
  }

  std::vector<std::byte> memory_;
  std::unique_ptr<Engine> owner_;
  Region region_;
  int fd_ = -1;
  int heartbeat_ms_ = 0;
  std::optional<Target> writer_;
};

TEST_F(Quarantine, AWriterKilledInTheMiddleHoldsNothing) {
  expect_killed_writer_holds_nothing(false);
}

// The child holds the dead writer's sockets and shared memory: only the process itself proves that it is gone.
TEST_F(Quarantine, AWriterKilledInTheMiddleWhoseForkedChildLivesHoldsNothing) {
  start(10000);  // silence must not be what frees the memory
  expect_killed_writer_holds_nothing(true);
}

TEST_F(Quarantine, ALiveWriterLeavesAtOnce) {
  const Stopwatch watch;
  EXPECT_TRUE(region_.unregister(seconds(30)).ok());
  EXPECT_LT(watch.elapsed(), seconds(2));
  memory_.assign(kBytes, std::byte{1});
  EXPECT_EQ(writer_->ask("notifications"), "0");  // it lives
  EXPECT_EQ(std::count(memory_.begin(), memory_.end(), std::byte{1}), static_cast<ptrdiff_t>(kBytes));
}

TEST_F(Quarantine, AStoppedWriterKeepsTheRangeUntilItIsQuiet) {
  ASSERT_TRUE(stop_in_a_copy());
  EXPECT_THAT(owner_->describe(), ::testing::ContainsRegex("\"quarantined\":\\[\\{\"region\":[0-9]+"));
  const Status refused = register_again();
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::not_quiet) << refused.error().to_string();

  // Longer than the heartbeats allow: the session is gone, the writer is still in there.
  ASSERT_TRUE(eventually([&] { return owner_->describe().find("\"sessions\":0") != std::string::npos; }));
  EXPECT_FALSE(register_again().ok());

  ASSERT_TRUE(writer_->process().resume().ok());
  pollfd event{fd_, POLLIN, 0};
  ASSERT_EQ(::poll(&event, 1, 40000), 1) << "quiet again was not told";
  EXPECT_THAT(owner_->take_completed(), ::testing::Contains(uint64_t{0}));
  EXPECT_THAT(owner_->describe(), ::testing::HasSubstr("\"quarantined\":[]"));
  EXPECT_TRUE(register_again().ok());
  const auto now = look();
  EXPECT_EQ(writer_->ask("notifications"), "0");
  EXPECT_TRUE(look() == now);
}

TEST_F(Quarantine, AStoppedWriterThatIsKilledReleasesTheRange) {
  ASSERT_TRUE(stop_in_a_copy());
  EXPECT_FALSE(register_again().ok());
  ASSERT_TRUE(writer_->process().kill().ok());
  EXPECT_TRUE(eventually([&] { return register_again().ok(); }));
}

}  // namespace
}  // namespace kvferry::test
