#include "http/message.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

#include "common/secret.h"
#include "http/auth.h"
#include "http/json.h"
#include "http/url.h"

namespace kvferry::http {
namespace {

TEST(Headers, AreFoundInAnyCase) {
  Headers headers;
  headers.add("X-A", "1");
  headers.add("x-a", "2");
  EXPECT_EQ(headers.get("X-a"), "1");
  EXPECT_EQ(headers.count("X-A"), 2U);
  headers.set("X-A", "3");
  EXPECT_EQ(headers.count("x-a"), 1U);
  EXPECT_EQ(headers.get("x-a"), "3");
}

TEST(HopByHop, CoversTheListAndWhatConnectionNames) {
  Headers headers;
  headers.add("Connection", "close, X-Secret-Hop");
  headers.add("connection", "Second,third");
  const HopByHop hop_by_hop(headers);
  for (const char* name : {"transfer-encoding", "x-secret-hop", "second", "Third"}) {
    EXPECT_TRUE(hop_by_hop.covers(name)) << name;
  }
  EXPECT_FALSE(hop_by_hop.covers("traceparent"));
  EXPECT_FALSE(hop_by_hop.covers("authorization"));
}

TEST(Url, ReadsHostsPortsAndPrefixes) {
  const auto plain = parse_url("http://host.a:8100/prefix/");
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain->host, "host.a");
  EXPECT_EQ(plain->port, 8100);
  EXPECT_EQ(plain->path, "/prefix");
  EXPECT_EQ(parse_url("host")->port, 80);
}

TEST(Url, Trap15ReadsIPv6InBrackets) {
  const auto url = parse_url("http://[2001:db8::1]:8200");
  ASSERT_TRUE(url.ok());
  EXPECT_EQ(url->host, "2001:db8::1");
  EXPECT_EQ(url->authority(), "[2001:db8::1]:8200");
  EXPECT_FALSE(parse_url("http://[2001:db8::1").ok());
  EXPECT_FALSE(parse_url("http://2001:db8::1:80").ok());
}

TEST(Url, KnowsWhichAreSecure) {
  const auto url = parse_url("https://host/prefix");
  ASSERT_TRUE(url.ok());
  EXPECT_TRUE(url->secure);
  EXPECT_EQ(url->port, 443);
  EXPECT_EQ(url->to_string(), "https://host:443/prefix");
  EXPECT_FALSE(parse_url("http://host")->secure);
  EXPECT_FALSE(parse_url("https://http://host").ok());
}

TEST(Url, RefusesWhatItCannotUse) {
  for (const char* bad : {"", "http://", "https://", "http://a:0", "http://a:70000", "http://a:", "http://a b",
                          "http://u@a", "http://a:80x"}) {
    EXPECT_FALSE(parse_url(bad).ok()) << bad;
  }
}

TEST(Authorized, ComparesBearerTokens) {
  Headers headers;
  EXPECT_TRUE(authorized(headers, ""));
  EXPECT_FALSE(authorized(headers, "secret"));
  headers.set("Authorization", "Bearer secret");
  EXPECT_TRUE(authorized(headers, "secret"));
  EXPECT_FALSE(authorized(headers, "secret2"));
  EXPECT_FALSE(authorized(headers, "Secret"));
  headers.set("Authorization", "Basic secret");
  EXPECT_FALSE(authorized(headers, "secret"));
}

TEST(ReadSecret, RefusesFilesThatOthersMayRead) {
  const std::string path = testing::TempDir() + "kvferry_key_" + std::to_string(::getpid());
  std::FILE* file = std::fopen(path.c_str(), "w");
  ASSERT_NE(file, nullptr);
  std::fputs("secret\n", file);
  std::fclose(file);
  ::chmod(path.c_str(), 0644);
  EXPECT_EQ(read_secret("@" + path).error().code, ErrorCode::permission_denied);
  ::chmod(path.c_str(), 0600);
  const auto secret = read_secret("@" + path);
  ASSERT_TRUE(secret.ok());
  EXPECT_EQ(*secret, "secret");
  EXPECT_EQ(*read_secret("plain"), "plain");
  ::unlink(path.c_str());
}

TEST(ErrorBody, HasOpenAIsShapeAndEscapes) {
  EXPECT_EQ(error_body(400, "a \"b\"\n\x01"),
            R"({"error":{"message":"a \"b\"\n\u0001","type":"invalid_request_error","param":null,"code":400}})");
}

}  // namespace
}  // namespace kvferry::http
