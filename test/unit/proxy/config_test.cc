#include "proxy/config.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

namespace kvferry::proxy {
namespace {

Result<ParsedConfig> parse(const std::vector<std::string>& words, std::map<std::string, std::string> variables = {}) {
  return parse_config(words, Environment(std::move(variables)));
}

TEST(Config, ReadsPrefillersWithAndWithoutBootstrapPort) {
  const auto parsed = parse({"--prefill", "http://a:8100", "8991", "--prefill", "http://b:8100", "none",
                             "--prefill=http://c:8100", "--decode", "http://d:8200", "--decode", "http://[::1]:8200"});
  ASSERT_TRUE(parsed.ok()) << parsed.error().to_string();
  const ProxyConfig& config = parsed->config;
  ASSERT_EQ(config.prefill.size(), 3U);
  EXPECT_EQ(config.prefill[0].bootstrap_port, 8991);
  EXPECT_EQ(config.prefill[1].bootstrap_port, std::nullopt);
  EXPECT_EQ(config.prefill[2].bootstrap_port, 8998);
  ASSERT_EQ(config.decode.size(), 2U);
  EXPECT_EQ(config.decode[1].host, "::1");
  EXPECT_EQ(config.port, 8000);
  EXPECT_EQ(config.admin_port, 8009);
}

TEST(Config, ReadsTheOlderDialects) {
  const auto parsed = parse({"--prefiller-hosts", "a,b", "--prefiller-ports", "1,2", "--decoder-host", "c",
                             "--decoder-port", "3", "--port", "9000", "--connector", "nixl"});
  ASSERT_TRUE(parsed.ok()) << parsed.error().to_string();
  ASSERT_EQ(parsed->config.prefill.size(), 2U);
  EXPECT_EQ(parsed->config.prefill[1].url.authority(), "b:2");
  EXPECT_EQ(parsed->config.prefill[1].bootstrap_port, std::nullopt);
  EXPECT_EQ(parsed->config.decode[0].authority(), "c:3");
  EXPECT_EQ(parsed->config.port, 9000);
}

TEST(Config, FlagsWinOverTheFile) {
  const std::string path = testing::TempDir() + "kvferry_proxy_" + std::to_string(::getpid()) + ".yaml";
  std::ofstream(path) << "port: 9001\npolicy: prefix\nmax_body: 1M\ndebug-headers: true\n"
                         "prefill:\n  - url: http://a:8100\n    bootstrap_port: 8999\n  - http://b:8100 none\n"
                         "decode: [http://d:8200, http://e:8200]\n";
  const auto parsed = parse({"--config", path, "--policy", "session"});
  ::unlink(path.c_str());
  ASSERT_TRUE(parsed.ok()) << parsed.error().to_string();
  EXPECT_EQ(parsed->config.port, 9001);
  EXPECT_EQ(parsed->config.policy, Policy::session);
  EXPECT_EQ(parsed->config.max_body, 1U << 20);
  EXPECT_TRUE(parsed->config.debug_headers);
  ASSERT_EQ(parsed->config.prefill.size(), 2U);
  EXPECT_EQ(parsed->config.prefill[0].bootstrap_port, 8999);
  EXPECT_EQ(parsed->config.prefill[1].bootstrap_port, std::nullopt);
  EXPECT_EQ(parsed->config.decode.size(), 2U);
}

TEST(Config, TheLeaseIsVllmsOwnSetting) {
  EXPECT_EQ(parse({})->config.lease, std::chrono::seconds(480));
  const auto parsed = parse({}, {{"VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT", "60"}});
  EXPECT_EQ(parsed->config.lease, std::chrono::seconds(60));
  EXPECT_EQ(parsed->config.prefill_timeout, std::chrono::seconds(60));
}

TEST(Config, RefusesWhatItDoesNotUnderstand) {
  EXPECT_FALSE(parse({"--no-such-flag"}).ok());
  EXPECT_FALSE(parse({"--policy", "best"}).ok());
  EXPECT_FALSE(parse({"--connector", "pigeon"}).ok());
  EXPECT_FALSE(parse({"--prefill", "https://a"}).ok());
  EXPECT_FALSE(parse({"--prefill", "http://a", "99999"}).ok());
  EXPECT_FALSE(parse({"--lease", "soon"}).ok());
  EXPECT_FALSE(parse({"--config", "/no/such/file"}).ok());
  EXPECT_FALSE(parse({"--prefiller-hosts", "a,b,c", "--prefiller-ports", "1,2"}).ok());
  EXPECT_FALSE(parse({"--api-key", "@/no/such/file"}).ok());
  EXPECT_FALSE(parse({"--api-key", "a\r\nX: y"}).ok());
}

TEST(Config, AllBodiesTogetherHaveRoomForTheLargest) {
  EXPECT_EQ(parse({})->config.max_bodies, 1U << 30);
  EXPECT_FALSE(parse({"--max-body", "2G"}).ok());
  EXPECT_TRUE(parse({"--max-body", "2G", "--max-bodies", "0"}).ok());
  EXPECT_TRUE(parse({"--max-body", "1M", "--max-bodies", "1M"}).ok());
}

TEST(Config, TlsIsNeverHalfOf) {
  EXPECT_FALSE(parse({"--tls-key", "key.pem"}).ok()) << "the front would speak in the clear";
  EXPECT_FALSE(parse({"--admin-tls"}).ok());
  EXPECT_TRUE(parse({"--admin-tls", "--tls-certificate", "chain.pem", "--tls-key", "key.pem"}).ok());
}

TEST(Config, AFileThatHoldsAKeyMustBeNobodyElses) {
  const std::string path = testing::TempDir() + "kvferry_config_" + std::to_string(::getpid());
  const auto with = [&](const std::string& text, mode_t mode) {
    std::ofstream(path) << text;
    EXPECT_EQ(::chmod(path.c_str(), mode), 0);
    return parse({"--config", path});
  };
  EXPECT_FALSE(with("admin_key: secret\n", 0640).ok());
  EXPECT_EQ(with("admin_key: secret\n", 0600)->config.admin_key, "secret");
  EXPECT_TRUE(with("port: 8001\n", 0644).ok());
  EXPECT_EQ(std::remove(path.c_str()), 0);
}

TEST(Config, AFileThatCannotBeReadIsNamed) {
  for (const auto& [path, cause] : std::map<std::string, std::string>{{testing::TempDir(), "Is a directory"},
                                                                      {"/nowhere/at/all", "No such file"},
                                                                      {"/dev/zero", "more than 1 MiB"}}) {
    const auto parsed = parse({"--config", path});
    ASSERT_FALSE(parsed.ok()) << path;
    EXPECT_NE(parsed.error().to_string().find(path), std::string::npos) << parsed.error().to_string();
    EXPECT_NE(parsed.error().to_string().find(cause), std::string::npos) << parsed.error().to_string();
  }
}

TEST(Config, HelpIsText) {
  EXPECT_NE(parse({"--help"})->help.find("--prefill"), std::string::npos);
}

}  // namespace
}  // namespace kvferry::proxy
