#include <gmock/gmock.h>

#include <atomic>
#include <filesystem>

#include "bootstrap/bootstrap.h"
#include "engine/bench/trial_keys.h"
#include "test/support/engines.h"
#include "test/support/eventually.h"
#include "test/support/http_call.h"

// Bootstrap servers and their clients over TLS.

namespace kvferry::bootstrap {
namespace {

using test::eventually;
using test::must;
using ::testing::HasSubstr;

class ReleasesCounted final : public ParcelControl {
 public:
  void state(const std::string&, std::function<void(std::optional<ParcelReport>)> done) override { done({}); }
  void release(const std::string&, bool, std::function<void(ReleaseState)> done) override {
    ++count;
    done(ReleaseState::acknowledged);
  }
  std::atomic<int> count{0};
};

class BootstrapTls : public ::testing::Test {
 protected:
  BootstrapTls() {
    EXPECT_TRUE(keys_->sign("server", {.dns = "localhost,IP:127.0.0.1"}).ok());
    EXPECT_TRUE(keys_->sign("elsewhere", {.dns = "bootstrap.elsewhere"}).ok());
  }
  ServerSettings settings(const std::string& stem = "server") {
    const AuthConfig files = keys_->mtls_with(stem);
    ServerSettings made;
    made.port = 0;
    made.token = "token";
    made.certificate_file = files.certificate_file;
    made.key_file = files.key_file;
    made.ca_file = files.ca_file;
    made.gathering = Duration(0);
    made.logger = make_null_logger();
    return made;
  }
  std::unique_ptr<BlockingClient> client(const std::string& ca_file) {
    return must(BlockingClient::create({.token = "token", .timeout = std::chrono::seconds(10), .ca_file = ca_file}));
  }
  static std::string url_of(const Server& server, const char* scheme = "https") {
    return std::string(scheme) + "://127.0.0.1:" + std::to_string(server.port());
  }

  const std::unique_ptr<bench::TrialKeys> keys_ = must(bench::TrialKeys::create());
};

TEST_F(BootstrapTls, WorkersRegisterAreFoundAndAreToldOfReleases) {
  const auto base = must(Server::create(settings()));
  ReleasesCounted releases;
  ServerSettings of_worker = settings();
  of_worker.keeps_directory = false;
  of_worker.base_url = url_of(*base);
  const auto worker = must(Server::create(of_worker, &releases));
  WorkerInfo info;
  info.engine_id = info.instance_id = "engine";
  info.incarnation = 7;
  info.address = "127.0.0.1:41234";
  worker->set_worker(info);
  const auto asked = client(of_worker.ca_file);
  ASSERT_TRUE(eventually([&] {
    const auto found = asked->workers(url_of(*base));
    return found.ok() && (*found)->size() == 1;
  }));
  const std::string http = must(asked->workers(url_of(*base)))->front().http;
  EXPECT_EQ(http, url_of(*worker));
  EXPECT_EQ(must(asked->worker(http))->engine_id, "engine");
  EXPECT_EQ(must(asked->release(url_of(*base), "t", true)), ReleaseState::acknowledged);
  EXPECT_EQ(releases.count.load(), 1);
}

TEST_F(BootstrapTls, ServersThatNobodyVouchesForAreNotAsked) {
  const auto server = must(Server::create(settings()));
  const auto elsewhere = must(Server::create(settings("elsewhere")));
  const std::string ca = settings().ca_file;
  const auto others = must(bench::TrialKeys::create());
  const auto refusal = [&](const std::string& ca_file, const std::string& url) {
    const auto found = client(ca_file)->workers(url);
    return found.ok() ? Error{} : found.error();
  };
  EXPECT_TRUE(client(ca)->workers(url_of(*server)).ok());
  EXPECT_EQ(refusal(must(others->mtls()).ca_file, url_of(*server)).code, ErrorCode::permission_denied);
  EXPECT_EQ(refusal(ca, url_of(*elsewhere)).code, ErrorCode::permission_denied) << "its name is not what was asked for";
  EXPECT_THAT(refusal("", url_of(*server)).to_string(), HasSubstr("whom to trust"));
  EXPECT_FALSE(client(ca)->workers(url_of(*server, "http")).ok()) << "in the clear";
}

TEST_F(BootstrapTls, ACertificateThatIsReplacedIsShownToWhoComesLater) {
  const ServerSettings ours = settings();
  const auto server = must(Server::create(ours));
  EXPECT_TRUE(client(ours.ca_file)->workers(url_of(*server)).ok());
  const auto others = must(bench::TrialKeys::create());
  ASSERT_TRUE(others->sign("server", {.dns = "localhost,IP:127.0.0.1"}).ok());
  const AuthConfig theirs = others->mtls_with("server");
  // The certificate first: for a moment it does not fit the key, and the former pair stays in force.
  std::filesystem::rename(theirs.certificate_file, ours.certificate_file);
  EXPECT_TRUE(client(ours.ca_file)->workers(url_of(*server)).ok());
  std::filesystem::rename(theirs.key_file, ours.key_file);
  EXPECT_TRUE(eventually([&] { return client(theirs.ca_file)->workers(url_of(*server)).ok(); }));
  EXPECT_FALSE(client(ours.ca_file)->workers(url_of(*server)).ok());
}

TEST_F(BootstrapTls, KeysThatOthersMayReadAreRefused) {
  ServerSettings wide = settings();
  std::filesystem::permissions(wide.key_file, std::filesystem::perms::others_read, std::filesystem::perm_options::add);
  const auto made = Server::create(wide);
  ASSERT_FALSE(made.ok());
  EXPECT_THAT(made.error().to_string(), HasSubstr("others may use the key file"));
  ServerSettings half = settings("elsewhere");
  half.certificate_file.clear();
  EXPECT_FALSE(Server::create(half).ok()) << "a key without a certificate";
}

}  // namespace
}  // namespace kvferry::bootstrap
