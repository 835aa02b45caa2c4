#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <csignal>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "test/support/free_port.h"
#include "test/support/http_call.h"
#include "test/support/process.h"

// The programs with HTTP faces, asked in all ways and with the most lines that they have: their tokens are in nothing
// that others may see of them, however they were given. (Engines: AuthTest.TheSecretIsNowhereToBeSeen.)

namespace kvferry::test {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::Not;

std::string bearer(const std::string& token) {
  return "Authorization: Bearer " + token + "\r\n";
}

class Secrets : public ::testing::Test {
 protected:
  void start(const std::string& program, const std::vector<std::string>& arguments) {
    ProcessOptions options;
    options.arguments = arguments;
    options.merge_stderr = true;
    process_.emplace(Process::spawn(program, options).value());
    Result<std::string> line = std::string();
    while (line->find("listening on") == std::string::npos) {
      line = process_->read_line(seconds(60));
      ASSERT_TRUE(line.ok()) << seen_ << line.error().to_string();
      seen_ += *line + "\n";
    }
  }
  // A secret of this test's own, in a file or as it is.
  std::string secret(const std::string& name) {
    secrets_.push_back(name + "-4fe1c09a27b3");
    return secrets_.back();
  }
  std::string secret_in_file(const std::string& name) {
    const std::string path = ::testing::TempDir() + "secrets_test_" + std::to_string(::getpid()) + name;
    std::ofstream(path) << secret(name) << "\n";
    ::chmod(path.c_str(), 0600);
    files_.push_back(path);
    return "@" + path;
  }
  // The answer's status; all of it is looked through later.
  int ask(uint16_t port, const std::string& method, const std::string& target, const std::string& headers = "",
          const std::string& body = "") {
    const Answer answer = call(port, method, target, body, headers);
    seen_ += answer.head + answer.body;
    return answer.status;
  }
  std::string process_title() const {
    std::ifstream file("/proc/" + std::to_string(process_->pid()) + "/cmdline", std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // Ends the program and looks.
  void expect_nothing_seen() {
    seen_ += process_title();
    ASSERT_TRUE(process_->signal(SIGTERM).ok());
    for (auto line = process_->read_line(seconds(60)); line.ok(); line = process_->read_line(seconds(60)))
      seen_ += *line + "\n";
    for (const std::string& one : secrets_) EXPECT_THAT(seen_, Not(HasSubstr(one.substr(0, one.size() - 2))));
  }
  void TearDown() override {
    for (const std::string& path : files_) ::unlink(path.c_str());
  }

  std::optional<Process> process_;
  std::vector<std::string> secrets_, files_;
  std::string seen_;  // by others
};

TEST_F(Secrets, OfTheProxyAreNowhereToBeSeen) {
  const uint16_t front = free_ports(4);
  const auto admin = static_cast<uint16_t>(front + 1);
  const std::string nobody = "http://127.0.0.1:" + std::to_string(front + 2);
  const std::string client = secret("client");
  const std::string operators = secret("operator");
  ASSERT_NO_FATAL_FAILURE(start(KVF_PROXY, {"--host",
                                            "127.0.0.1",
                                            "--port",
                                            std::to_string(front),
                                            "--admin-port",
                                            std::to_string(admin),
                                            "--prefill",
                                            nobody,
                                            std::to_string(front + 3),
                                            "--decode",
                                            nobody,
                                            "--require-key",
                                            client,
                                            "--admin-key=" + operators,
                                            "--api-key",
                                            secret_in_file("backend"),
                                            "--bootstrap-token",
                                            secret_in_file("bootstrap"),
                                            "--access-log",
                                            "-",
                                            "--debug-headers",
                                            "--log-level",
                                            "debug",
                                            "--health-interval",
                                            "100ms"}));
  const std::string body = R"({"model":"m","prompt":"a story that is long enough for two legs","max_tokens":4})";
  EXPECT_EQ(ask(front, "POST", "/v1/completions", "", body), 401);
  EXPECT_EQ(ask(front, "POST", "/v1/completions", bearer(secret("mistyped")), body), 401);
  EXPECT_GE(ask(front, "POST", "/v1/completions", bearer(client), body), 500);
  EXPECT_EQ(ask(front, "POST", "/v1/completions", bearer(client), "no JSON"), 400);
  EXPECT_GE(ask(front, "GET", "/v1/../x", bearer(client)), 400);
  ask(front, "GET", "/metrics", bearer(client));
  EXPECT_EQ(ask(admin, "GET", "/metrics", bearer(operators)), 200);
  const std::string change = R"({"role":"nobody","url":"http://127.0.0.1:1","action":"add"})";
  EXPECT_EQ(ask(admin, "POST", "/admin/backends", bearer(client), change), 401);
  EXPECT_EQ(ask(admin, "POST", "/admin/backends", bearer(operators), change), 400);
  for (const char* target : {"/dashboard", "/admin/parcels", "/admin/peers", "/admin/backends", "/nothing"})
    ask(admin, "GET", target, bearer(operators));
  expect_nothing_seen();
}

TEST_F(Secrets, OfBootstrapAreNowhereToBeSeen) {
  const uint16_t port = free_ports(1);
  const std::string worker = R"({"engine_id":"e","dp_rank":0,"tp_rank":0,"pp_rank":0,"addr":"tcp://127.0.0.1:1"})";
  for (const bool in_file : {false, true}) {
    const std::string given = in_file ? secret_in_file("file") : secret("flag");
    ASSERT_NO_FATAL_FAILURE(start(KVF_BOOTSTRAP, {"--host", "127.0.0.1", "--port", std::to_string(port), "--token",
                                                  given, "--log-level", "debug"}));
    EXPECT_EQ(ask(port, "POST", "/register", "", worker), 401);
    EXPECT_EQ(ask(port, "POST", "/register", bearer(secret("mistyped")), worker), 401);
    EXPECT_EQ(ask(port, "POST", "/register", bearer(secrets_.front()), "no JSON"), 400);
    EXPECT_EQ(ask(port, "POST", "/register", bearer(secrets_.front()), worker), 200);
    for (const char* target : {"/query", "/metrics", "/v1/worker", "/"}) ask(port, "GET", target);
    expect_nothing_seen();
    secrets_.clear();
  }
}

}  // namespace
}  // namespace kvferry::test
