// What a client may do to the others: nothing. On the program itself, in a process of its own.

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <vector>

#include "test/support/eventually.h"
#include "test/support/http_call.h"
#include "test/support/process.h"
#include "test/support/sanitized.h"
#include "test/support/stopwatch.h"

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr size_t kIdle = 5000;
constexpr uint64_t kBytesEach = kSanitized ? 48 << 10 : 8 << 10;  // an idle connection may cost this much

constexpr Duration kBearable = milliseconds(500) * kSlower;

const std::string kWorker = R"({"engine_id":"e1","dp_rank":0,"tp_rank":0,"pp_rank":0,"addr":"tcp://10.0.0.2:41234"})";
const std::string kTable = R"({"0":{"engine_id":"e1","worker_addr":{"0":{"0":"tcp://10.0.0.2:41234"}}}})";

class BootstrapAbuse : public testing::Test {
 protected:
  BootstrapAbuse()
      : process_(Process::spawn(KVF_BOOTSTRAP, {.arguments = {"--port", "0", "--head-timeout", "1s", "--body-timeout",
                                                              "1s", "--idle-timeout", "300s"},
                                                .environment = {},
                                                .merge_stderr = true})
                     .value()) {
    const std::string line = process_.read_line_with("listening on", seconds(60)).value();
    port_ = static_cast<uint16_t>(std::stoi(line.substr(line.rfind(':') + 1)));
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
    KVF_CHECK(call(port_, "POST", "/register", kWorker).status == 200);
  }
  ~BootstrapAbuse() override {
    EXPECT_TRUE(process_.signal(SIGTERM).ok());
    EXPECT_EQ(process_.wait(seconds(60)).value().exit_status, 0);
  }

  // The slowest of some queries on connections of their own, as far as the machine did not stand still.
  Duration slowest_query(int times) {
    const Stopwatch watch;
    Duration slowest{0};
    for (int i = 0; i < times; ++i) {
      const Duration before = watch.seen_standing_still();
      const TimePoint began = clock_.now();
      EXPECT_EQ(call(port_, "GET", "/query").body, kTable);
      const Duration took = clock_.now() - began;
      if (took > slowest) slowest = std::max(slowest, took - (watch.stood_still() - before));
    }
    return slowest;
  }

  Process process_;
  uint16_t port_ = 0;
  const SystemClock clock_;
};

TEST_F(BootstrapAbuse, ThousandsOfIdleConnectionsCostLittleAndHarmNobody) {
  slowest_query(20);
  const uint64_t before = process_.resident_bytes().value();
  std::vector<UniqueFd> idle;
  for (size_t i = 0; i < kIdle; ++i) {
    idle.push_back(dial(port_));
    ASSERT_TRUE(idle.back().valid()) << i;
  }
  ASSERT_TRUE(eventually([&] { return process_.open_files().value() >= kIdle; }));
  const Duration slowest = slowest_query(200);
  const uint64_t each = (process_.resident_bytes().value() - before) / kIdle;
  RecordProperty("bytes_each", static_cast<int>(each));
  RecordProperty("slowest_query_us", static_cast<int>(slowest / std::chrono::microseconds(1)));
  EXPECT_LT(each, kBytesEach);
  EXPECT_LT(slowest, kBearable);
}

TEST_F(BootstrapAbuse, RequestsThatTrickleInAreEndedInTime) {
  const Stopwatch watch;
  std::vector<UniqueFd> slow;
  for (int i = 0; i < 400; ++i) {
    slow.push_back(dial(port_));
    const bool head = i % 2 == 0;
    ASSERT_TRUE(
        send_all(slow.back().get(), head ? "GET /query HTTP/1.1\r\nHost: x\r\nX-Slow:"
                                         : "POST /register HTTP/1.1\r\nHost: x\r\nContent-Length: 8000\r\n\r\n{"));
  }
  EXPECT_LT(slowest_query(50), kBearable);
  for (const UniqueFd& fd : slow) {
    const Answer answer = parse_answer(receive_all(fd.get()));
    ASSERT_EQ(answer.status, 408);
    ASSERT_TRUE(answer.body.starts_with(R"({"error":)")) << answer.body;
  }
  EXPECT_LT(watch.elapsed(), seconds(8) * kSlower);
}

TEST_F(BootstrapAbuse, LargeBodiesAreRefusedUnread) {
  slowest_query(20);
  const uint64_t before = process_.resident_bytes().value();
  const std::string body(10 << 20, '[');
  for (int i = 0; i < 20; ++i) {
    const Answer answer = call(port_, "POST", "/register", body);
    EXPECT_EQ(answer.status, 413);
    EXPECT_TRUE(answer.body.starts_with(R"({"error":)")) << answer.body;
  }
  // Chunked, so that the size is not told before.
  const UniqueFd fd = dial(port_);
  send_all(fd.get(), "POST /register HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nA00000\r\n" + body);
  EXPECT_EQ(parse_answer(receive_all(fd.get())).status, 413);
  EXPECT_LT(process_.resident_bytes().value(), before + (8 << 20));
  EXPECT_LT(slowest_query(50), kBearable);
}

TEST_F(BootstrapAbuse, TheFullTableRefusesAndStaysSmall) {
  for (int i = 0; i < 1100; ++i) {
    const int status = call(port_, "POST", "/ns" + std::to_string(i) + "/register", kWorker).status;
    ASSERT_EQ(status, i < 1023 ? 200 : 503) << i;
  }
  EXPECT_EQ(call(port_, "GET", "/query").body, kTable);
}

}  // namespace
}  // namespace kvferry::test
