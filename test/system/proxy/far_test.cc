// The proxy behind a slow link that loses packets: clients and backends on one side, the proxy on the other, so that
// every byte crosses it.

#include <gtest/gtest.h>

#include <sstream>

#include "test/support/eventually.h"
#include "test/support/http_call.h"
#include "test/support/link/link.h"
#include "test/support/process.h"

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class FarAway : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = Link::why_not(); !reason.empty()) GTEST_SKIP() << reason;
    auto made = Link::create({.seed = 23});
    ASSERT_TRUE(made.ok()) << made.error().to_string();
    link_.emplace(std::move(made).value());
  }

  void start(const std::vector<std::string>& mock_options) {
    std::vector<std::string> words = {"--host", far_};
    words.insert(words.end(), mock_options.begin(), mock_options.end());
    mock_.emplace(spawn(KVF_PROXY_MOCK, words, Side::right));
    ASSERT_TRUE(mock_->read_line_with("ready", seconds(60)).ok());
    proxy_.emplace(spawn(KVF_PROXY,
                         {"--host", near_, "--admin-port", "-1", "--access-log", "none", "--prefill",
                          "http://" + far_ + ":8100", "8998", "--decode", "http://" + far_ + ":8200",
                          // Of a hundred connects on such a link, several are late by three seconds.
                          "--connect-timeout", "15s"},
                         Side::left));
    ASSERT_TRUE(proxy_->read_line_with("listening on", seconds(60)).ok());
    for (const char* line : {"loss 0.02", "delay 10ms", "rate 2M"}) ASSERT_TRUE(link_->command(line).ok());
  }
  Process spawn(const std::string& program, const std::vector<std::string>& arguments, Side side) {
    return Process::spawn(program, {.arguments = arguments,
                                    .environment = {},
                                    .network_namespace = link_->network_namespace(side),
                                    .merge_stderr = true})
        .value();
  }
  Process load(std::vector<std::string> options) {
    options.insert(options.begin(), {"--host", near_, "--port", "8000"});
    return spawn(KVF_PROXY_LOAD, options, Side::right);
  }
  // The load's report.
  static std::string end_of(Process& load) {
    const auto line = load.read_line_with("\"requests\"", seconds(120));
    return line.ok() ? *line : line.error().to_string();
  }
  std::string page() {
    std::string text;
    link_->run_in(Side::left, [&] { text = call(8000, "GET", "/metrics", "", "", near_.c_str()).body; });
    return text;
  }
  bool page_has(const std::string& text) { return page().find(text) != std::string::npos; }
  // How legs of requests have ended.
  std::string legs() {
    std::istringstream lines(page());
    std::string found;
    for (std::string line; std::getline(lines, line);)
      if (line.starts_with("kvferry_proxy_legs_total")) found += "\n" + line;
    return found;
  }

  const std::string near_ = Link::address(Side::left), far_ = Link::address(Side::right);
  std::optional<Link> link_;
  std::optional<Process> mock_, proxy_;
};

TEST_F(FarAway, NoRequestFails) {
  start({"--events", "20"});
  Process plain = load({"--clients", "16", "--requests", "80"});
  Process streams = load({"--clients", "16", "--requests", "80", "--stream"});
  for (Process* one : {&plain, &streams}) {
    const std::string report = end_of(*one);
    EXPECT_NE(report.find("\"requests\":80,\"failed\":0,"), std::string::npos) << report << legs();
  }
  EXPECT_TRUE(eventually([&] { return page_has("kvferry_proxy_parcels_pinned 0"); }, seconds(60)));
}

TEST_F(FarAway, NothingStaysOfClientsThatLeave) {
  start({"--events", "5"});
  Process rude = load({"--clients", "32", "--requests", "300", "--leave", "--fresh"});
  const std::string report = end_of(rude);
  EXPECT_NE(report.find("\"requests\":300,\"failed\":0,"), std::string::npos) << report << legs();
  EXPECT_TRUE(eventually([&] { return page_has("kvferry_proxy_parcels_pinned 0"); }, seconds(60)));
  EXPECT_TRUE(eventually([&] { return page_has("kvferry_proxy_parcels_given_up 0"); }));
  EXPECT_TRUE(eventually([&] { return page_has("kvferry_proxy_requests_in_flight 0"); }, seconds(60)));
}

TEST_F(FarAway, StreamsGoOnAfterACutThatHeals) {
  // Each lasts for four seconds and more, so that all of them are there at once although some begin late.
  start({"--events", "200", "--pause-ms", "20"});
  Process streams = load({"--clients", "8", "--requests", "8", "--stream"});
  ASSERT_TRUE(eventually([&] { return page_has("kvferry_proxy_first_byte_seconds_count 8"); }, seconds(60)));
  ASSERT_TRUE(link_->command("cut").ok());
  ASSERT_TRUE(eventually([&] { return link_->stats().value().cut >= 20; }, seconds(60)));
  ASSERT_TRUE(link_->command("heal").ok());
  const std::string report = end_of(streams);
  EXPECT_NE(report.find("\"requests\":8,\"failed\":0,"), std::string::npos) << report << legs();
}

}  // namespace
}  // namespace kvferry::test
