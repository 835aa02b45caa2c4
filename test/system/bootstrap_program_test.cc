// The program itself, killed and started again between workers of several prefillers.

#include <gtest/gtest.h>
#include <unistd.h>

#include <random>

#include "bootstrap/bootstrap.h"
#include "test/support/eventually.h"
#include "test/support/http_call.h"
#include "test/support/process.h"

namespace kvferry::bootstrap {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using test::call;
using test::eventually;
using test::Process;

class BootstrapProgram : public ::testing::Test {
 protected:
  // False: the port is taken.
  bool start(uint16_t port) {
    test::ProcessOptions options;
    options.arguments = {"--port", std::to_string(port), "--token", "secret"};
    options.arguments.insert(options.arguments.end(), flags_.begin(), flags_.end());
    options.merge_stderr = true;
    auto spawned = Process::spawn(KVF_BOOTSTRAP, options);
    KVF_CHECK(spawned.ok());
    if (!spawned->read_line_with("listening on", seconds(60)).ok()) return false;
    process_.emplace(std::move(*spawned));
    port_ = port;
    return true;
  }
  // It must be known before the second life, so it is none of those that the kernel lends to connections.
  void start_somewhere() {
    std::mt19937 random(static_cast<uint32_t>(::getpid()));
    for (int tries = 0; tries < 50; ++tries)
      if (start(static_cast<uint16_t>(20000 + random() % 12000))) return;
    FAIL() << "no port is free";
  }

  // The worker of one prefiller, whose directory is the program's.
  std::unique_ptr<Server> worker(const std::string& space) {
    ServerSettings settings;
    settings.port = 0;
    settings.token = "secret";
    settings.keeps_directory = false;
    settings.base_url = "http://127.0.0.1:" + std::to_string(port_) + "/" + space;
    settings.worker_heartbeat = milliseconds(100);
    settings.logger = make_null_logger();
    auto server = Server::create(settings);
    KVF_CHECK(server.ok());
    WorkerInfo info;
    info.instance_id = "inst-" + space;
    info.engine_id = info.instance_id + "/0.0.0";
    info.incarnation = 1;
    info.address = "127.0.0.1:7100";
    info.rank = {1, 0, 1, 0, 1, 0};
    (*server)->set_worker(info);
    return std::move(*server);
  }
  bool knows(const std::string& space) {
    return eventually([&] {
      const std::string table = call(port_, "GET", "/" + space + "/query").body;
      return table.find("inst-" + space) != std::string::npos &&
             table.find("inst-", table.find("inst-") + 1) == table.npos;
    });
  }

  std::vector<std::string> flags_;  // further ones
  std::optional<Process> process_;
  uint16_t port_ = 0;
};

TEST_F(BootstrapProgram, WorkersOfSeveralPrefillersComeBackWhenItWasKilled) {
  ASSERT_NO_FATAL_FAILURE(start_somewhere());
  const auto first = worker("a");
  const auto second = worker("b");
  EXPECT_TRUE(knows("a"));
  EXPECT_TRUE(knows("b"));
  for (int life = 0; life < 3; ++life) {
    ASSERT_TRUE(process_->kill().ok());
    ASSERT_TRUE(start(port_)) << "another program has taken its port meanwhile";
    EXPECT_TRUE(knows("a")) << life;
    EXPECT_TRUE(knows("b")) << life;
  }
}

TEST_F(BootstrapProgram, IdleConnectionsOfOneHostKeepNobodyOut) {
  flags_ = {"--max-connections", "8", "--max-per-address", "4"};
  ASSERT_NO_FATAL_FAILURE(start_somewhere());
  std::vector<UniqueFd> idle;
  for (int i = 0; i < 8; ++i) idle.push_back(test::dial(port_, "127.0.0.1", "127.0.0.2"));
  EXPECT_EQ(call(port_, "GET", "/health").status, 200) << "from another host";
  EXPECT_EQ(test::parse_answer(test::receive_all(idle.back().get())).status, 503);
  idle.front().reset();
  EXPECT_TRUE(eventually([&] {
    const UniqueFd again = test::dial(port_, "127.0.0.1", "127.0.0.2");
    test::send_all(again.get(), "GET /health HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
    return test::parse_answer(test::receive_all(again.get())).status == 200;
  })) << "a place that was given back";
}

TEST_F(BootstrapProgram, ChangesNothingWithoutTheToken) {
  ASSERT_NO_FATAL_FAILURE(start_somewhere());
  const auto first = worker("a");
  ASSERT_TRUE(knows("a"));
  const std::string stranger =
      R"({"engine_id":"stranger","dp_rank":0,"tp_rank":0,"pp_rank":0,"addr":"tcp://10.0.0.9:1"})";
  EXPECT_EQ(call(port_, "POST", "/a/register", stranger).status, 401);
  EXPECT_EQ(call(port_, "POST", "/a/register", stranger, "Authorization: Bearer wrong\r\n").status, 401);
  EXPECT_EQ(call(port_, "DELETE", "/a/register", R"({"engine_id":"inst-a"})").status, 401);
  EXPECT_EQ(call(port_, "DELETE", "/a/v1/parcels/t1?force=1").status, 401);
  EXPECT_TRUE(knows("a"));
  EXPECT_EQ(
      call(port_, "DELETE", "/a/register", R"({"engine_id":"inst-a"})", "Authorization: Bearer secret\r\n").status,
      200);
}

}  // namespace
}  // namespace kvferry::bootstrap
