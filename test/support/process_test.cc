#include "test/support/process.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>

#include "test/support/eventually.h"
#include "test/support/stopwatch.h"

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Duration kLong = seconds(60);
constexpr Duration kShort = milliseconds(30);

Process start(const std::string& what, ProcessOptions options = {}) {
  options.arguments.insert(options.arguments.begin(), what);
  auto process = Process::spawn(KVF_TEST_CHILD, options);
  EXPECT_TRUE(process.ok()) << process.error().to_string();
  return std::move(process).value();
}

TEST(Process, PassesLinesBothWaysAndTellsTheExitStatus) {
  Process child = start("echo");
  ASSERT_TRUE(child.write("one\ntwo\nthree\n").ok());
  EXPECT_EQ(*child.read_line(kLong), "one");
  EXPECT_EQ(*child.read_line_with("hre", kLong), "three");
  child.close_stdin();
  const auto end = child.wait(kLong);
  ASSERT_TRUE(end.ok());
  EXPECT_EQ(end->exit_status, 7);
  EXPECT_EQ(child.wait(kShort)->exit_status, 7) << "the end can be asked for again";
  EXPECT_EQ(child.read_line(kLong).error().code, ErrorCode::peer_lost);
  EXPECT_EQ(child.signal(SIGTERM).error().code, ErrorCode::not_found);
}

TEST(Process, EndsAWaitForALineAtItsDeadline) {
  Process child = start("echo");
  const TimePoint before = SystemClock().now();
  EXPECT_EQ(child.read_line(kShort).error().code, ErrorCode::deadline_exceeded);
  EXPECT_EQ(child.wait(kShort).error().code, ErrorCode::deadline_exceeded);
  EXPECT_GE(SystemClock().now() - before, 2 * kShort);
}

TEST(Process, TellsALineWithoutItsEndFromALine) {
  Process child = start("half");
  const auto line = child.read_line(kLong);
  ASSERT_FALSE(line.ok());
  EXPECT_EQ(line.error().code, ErrorCode::peer_lost);
  EXPECT_EQ(line.error().cause, "no end of line");
}

TEST(Process, WritesToAnEndedChildAreAnErrorAndNoSignal) {
  Process child = start("half");
  ASSERT_TRUE(child.wait(kLong).ok());
  EXPECT_EQ(child.write("late\n").error().code, ErrorCode::peer_lost);
  EXPECT_EQ(child.write("later\n").error().code, ErrorCode::peer_lost);
}

TEST(Process, AnswersNothingWhileStoppedAndGoesOn) {
  Process child = start("echo");
  ASSERT_TRUE(child.stop().ok());
  ASSERT_TRUE(child.write("hello\n").ok());
  EXPECT_EQ(child.read_line(kShort).error().code, ErrorCode::deadline_exceeded);
  ASSERT_TRUE(child.resume().ok());
  EXPECT_EQ(*child.read_line(kLong), "hello");
}

TEST(Process, IsKilledWhileStopped) {
  Process child = start("stall");
  ASSERT_TRUE(child.stop().ok());
  ASSERT_TRUE(child.kill().ok());
  EXPECT_EQ(child.wait(kLong)->signal, SIGKILL);
}

TEST(Process, DoesNotOutliveItsObject) {
  pid_t pid = 0;
  {
    Process child = start("stall");
    Process moved = std::move(child);
    pid = moved.pid();
    EXPECT_EQ(::kill(pid, 0), 0);
  }
  EXPECT_EQ(::kill(pid, 0), -1);
}

TEST(Process, EndsTheOldChildWhenItTakesANewOne) {
  Process child = start("stall");
  const pid_t old = child.pid();
  child = start("echo");
  EXPECT_EQ(::kill(old, 0), -1);
  ASSERT_TRUE(child.write("x\n").ok());
  EXPECT_EQ(*child.read_line(kLong), "x");
}

TEST(Process, ReadsCpuTimeMemoryAndHandles) {
  Process child = start("burn");
  ASSERT_EQ(*child.read_line(kLong), "burnt");
  EXPECT_GE(*child.cpu_time(), milliseconds(40));
  EXPECT_LT(*child.cpu_time(), kLong);
  EXPECT_GE(*child.resident_bytes(), 64u << 20);
  EXPECT_GE(*child.open_files(), 3u);
  EXPECT_GE(*child.threads(), 1u);
  child.close_stdin();
  EXPECT_EQ(child.wait(kLong)->exit_status, 0);
}

// For a child that is stopped, it is the machine that stands still.
TEST(Stopwatch, TakesOffTheTimeInWhichItCouldNotLook) {
  Process child = start("watch");
  ASSERT_TRUE(child.write("\n").ok());
  ASSERT_TRUE(child.read_line(kLong).ok());
  ASSERT_TRUE(child.stop().ok());
  const SystemClock clock;
  const TimePoint until = clock.now() + milliseconds(400);
  ASSERT_TRUE(eventually([&] { return clock.now() > until; }));
  ASSERT_TRUE(child.resume().ok());
  ASSERT_TRUE(child.write("\n").ok());
  const auto said = child.read_line(kLong);
  ASSERT_TRUE(said.ok()) << said.error().to_string();
  long passed = 0, worked = 0;
  ASSERT_EQ(std::sscanf(said->c_str(), "%ld %ld", &passed, &worked), 2) << *said;
  EXPECT_GE(passed, 400);
  EXPECT_GE(worked, 0);
  EXPECT_LE(worked, passed - 390);
}

TEST(Stopwatch, GoesOnWhileTheMachineWorks) {
  const Stopwatch watch;
  // Nearly all of the time, on a machine that may be busy: it must not have been taken off.
  EXPECT_TRUE(eventually([&] { return watch.elapsed() >= milliseconds(100); }));
}

TEST(Process, ReadsStderrWhenAsked) {
  ProcessOptions options;
  options.merge_stderr = true;
  Process child = start("errors", options);
  EXPECT_EQ(*child.read_line(kLong), "on stderr");
}

TEST(Process, AddsToTheEnvironment) {
  ProcessOptions options;
  options.arguments = {"-c", "echo $KVF_ONE $KVF_TWO"};
  options.environment = {{"KVF_ONE", "first value"}, {"KVF_TWO", "second"}};
  auto child = Process::spawn("/bin/sh", options);
  ASSERT_TRUE(child.ok());
  EXPECT_EQ(*child->read_line(kLong), "first value second");
}

TEST(Process, RefusesAProgramThatIsNotThere) {
  const auto child = Process::spawn("/nowhere/program");
  ASSERT_FALSE(child.ok());
  EXPECT_EQ(child.error().code, ErrorCode::not_found);
}

}  // namespace
}  // namespace kvferry::test
