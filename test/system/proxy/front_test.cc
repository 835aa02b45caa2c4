// The front door: limits, smuggling, slow and rude clients, administration.

#include "test/system/proxy/fixture.h"

namespace kvferry::proxy {
namespace {

class Front : public ProxySystem {
 protected:
  // Sends raw bytes and waits until the proxy closes; true if it answered with that status and nothing went on.
  ::testing::AssertionResult refused(const std::string& bytes, int status) {
    const size_t before = prefiller.requests + decoder.requests;
    auto asked = client();
    asked->send(bytes);
    if (!until([&] { return asked->closed(); })) return ::testing::AssertionFailure() << "not closed";
    if (asked->status() != status) return ::testing::AssertionFailure() << asked->received();
    if (asked->received().find("HTTP/1.1", 5) != std::string::npos)
      return ::testing::AssertionFailure() << "two answers";
    if (prefiller.requests + decoder.requests != before) return ::testing::AssertionFailure() << "it was passed on";
    return ::testing::AssertionSuccess();
  }
  const std::string kInner = "GET /v1/smuggled HTTP/1.1\r\nHost: t\r\n\r\n";
};

TEST_F(Front, SmuggledRequestsAreRefusedAndTheConnectionClosed) {
  start();
  const std::string post = "POST /v1/completions HTTP/1.1\r\nHost: t\r\n";
  EXPECT_TRUE(refused(post + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + kInner, 400));
  EXPECT_TRUE(refused(post + "Content-Length: 0\r\nContent-Length: 40\r\n\r\n" + kInner, 400));
  EXPECT_TRUE(refused(post + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + kInner, 400));
  EXPECT_TRUE(refused(post + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + kInner, 400));
  EXPECT_TRUE(refused(post + "Transfer-Encoding: chunked\r\n\r\n2;x=\"\n\"\r\n{}\r\n0\r\n\r\n" + kInner, 400));
  EXPECT_TRUE(refused(post + "Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n" + kInner, 400));
  EXPECT_TRUE(refused("POST /v1/completions HTTP/1.1\nHost: t\n\n" + kInner, 400));
  EXPECT_TRUE(refused(post + "Content-Length: 5\n\r\n" + kInner, 400));
  EXPECT_TRUE(refused("GET http://evil/v1/models HTTP/1.1\r\nHost: t\r\n\r\n", 400));
}

TEST_F(Front, ABodyWithChunksReachesTheBackendsWithALength) {
  start();
  auto asked = client();
  asked->send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" +
              std::string("5\r\n{\"pro\r\nb\r\nmpt\":\"abc\"}\r\n0\r\n\r\n"));
  ASSERT_TRUE(until([&] { return asked->closed(); }));
  EXPECT_EQ(asked->status(), 200);
  EXPECT_TRUE(decoder.seen.at(0).body.ends_with("\"prompt\":\"abc\"}"));
  EXPECT_EQ(decoder.seen[0].headers.get("transfer-encoding"), std::nullopt);
}

TEST_F(Front, ClientsThatExpectToBeToldAreTold) {
  start();
  auto asked = client();
  asked->send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: " +
              std::to_string(kPrompt.size()) + "\r\n\r\n");
  ASSERT_TRUE(until([&] { return asked->has("HTTP/1.1 100 Continue\r\n\r\n"); }));
  asked->send(kPrompt);
  ASSERT_TRUE(until([&] { return asked->has("HTTP/1.1 200 OK"); }));
}

TEST_F(Front, LargeHeadsAreRefused) {
  config.max_head = 4096;
  start();
  EXPECT_TRUE(refused("GET /v1/models HTTP/1.1\r\nHost: t\r\nX-A: " + std::string(9000, 'a') + "\r\n\r\n", 431));
}

TEST_F(Front, HeadsOfManyFieldsAreRefused) {
  start();
  std::string fields;
  for (int i = 0; i < 200; ++i) fields += "X: a\r\n";
  EXPECT_TRUE(refused("GET /v1/models HTTP/1.1\r\nHost: t\r\n" + fields + "\r\n", 431));
  decoder.behaviour.content_type = "application/json\r\n" + fields + "X: a";
  const auto asked = ask(kPrompt);
  EXPECT_EQ(asked->status(), 502);
  EXPECT_FALSE(asked->has("X: a"));
  EXPECT_TRUE(nothing_pinned());
}

TEST_F(Front, BodiesOfManyMembersAreRefused) {
  start();
  std::string members = R"({"prompt":"abc")";
  for (int i = 0; i < 2000; ++i) members += ",\"\":1";
  for (const char* path : {"/v1/completions", "/v1/embeddings"}) {
    const auto asked = ask(members + "}", path);
    EXPECT_EQ(asked->status(), 400) << path;
    EXPECT_TRUE(asked->has("more than 1000 members")) << asked->received();
  }
  EXPECT_EQ(prefiller.requests + decoder.requests, 0U);
}

TEST_F(Front, TooManyConnectionsGet503) {
  config.max_connections = 2;
  start();
  auto first = client();
  auto second = client();
  ASSERT_TRUE(shows("kvferry_proxy_connections 2"));
  EXPECT_TRUE(refused("GET /health HTTP/1.1\r\nHost: t\r\n\r\n", 503));
  first->leave();
  ASSERT_TRUE(shows("kvferry_proxy_connections 1"));
  auto third = client();
  third->send("GET /healthcheck HTTP/1.1\r\nHost: t\r\n\r\n");
  EXPECT_TRUE(until([&] { return third->status() == 200; }));
}

TEST_F(Front, ConnectionsPerAddressAreLimited) {
  config.max_per_address = 1;
  start();
  auto first = client();
  ASSERT_TRUE(shows("kvferry_proxy_connections 1"));
  EXPECT_TRUE(refused("GET /health HTTP/1.1\r\nHost: t\r\n\r\n", 503));
}

TEST_F(Front, RequestsThatTrickleInAreEndedInTime) {
  start();
  for (const std::string begin : {"GET /health HTTP/1.1\r\nHost: t\r\nX-Slow: ",
                                  "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 80000\r\n\r\n{"}) {
    const auto slow = client();
    EXPECT_TRUE(trickle(*slow, begin)) << begin;
    EXPECT_EQ(slow->status(), 408) << slow->received();
  }
  EXPECT_TRUE(shows("kvferry_proxy_connections 0"));
}

// A client that asks for much and takes nothing; the decoder's stream ends with it, and nothing stays pinned.
TEST_F(Front, ClientsThatReadNothingAreLetGo) {
  config.client_stall = 300ms;
  decoder.behaviour.events = 2000;
  decoder.behaviour.event_bytes = 16 << 10;
  start();
  boost::asio::ip::tcp::socket deaf(loop);
  deaf.open(boost::asio::ip::tcp::v4());
  deaf.set_option(boost::asio::socket_base::receive_buffer_size(4096));
  deaf.connect({boost::asio::ip::make_address("127.0.0.1"), proxy->port()});
  boost::asio::write(deaf, boost::asio::buffer(request("/v1/completions", kStream)));
  ASSERT_TRUE(until([&] { return decoder.running == 1; }));
  EXPECT_TRUE(until(
      [&] { return decoder.running == 0 && exposition().find("kvferry_proxy_connections 0") != std::string::npos; }));
  EXPECT_NE(exposition().find("client_gone"), std::string::npos);
  EXPECT_TRUE(nothing_pinned());
}

TEST_F(Front, RequestsQueueAndOverflowIs429) {
  config.max_concurrent = 1;
  config.max_queue = 1;
  decoder.behaviour.delay = mock::kUntilWoken;
  start();
  auto running = client(), waiting = client(), refused_one = client();
  running->send(request("/v1/completions", kPrompt));
  ASSERT_TRUE(until([&] { return decoder.running == 1; }));
  waiting->send(request("/v1/completions", kPrompt));
  ASSERT_TRUE(shows("kvferry_proxy_requests_queued 1"));
  refused_one->send(request("/v1/completions", kPrompt));
  ASSERT_TRUE(until([&] { return refused_one->status() != 0; }));
  EXPECT_EQ(refused_one->status(), 429);
  EXPECT_TRUE(refused_one->has("Retry-After: 1\r\n"));
  decoder.behaviour.delay = 0ms;
  EXPECT_EQ(decoder.wake(), 1U);
  ASSERT_TRUE(until([&] { return waiting->status() == 200 && running->status() == 200; }));
}

TEST_F(Front, AClientThatLeavesTheQueueMakesRoom) {
  config.max_concurrent = 1;
  config.max_queue = 1;
  config.queue_timeout = 1h;
  decoder.behaviour.delay = mock::kUntilWoken;
  start();
  auto running = client(), left = client(), waiting = client();
  running->send(request("/v1/completions", kPrompt));
  ASSERT_TRUE(until([&] { return decoder.running == 1; }));
  left->send(request("/v1/completions", kPrompt));
  ASSERT_TRUE(shows("kvferry_proxy_requests_queued 1"));
  left->leave();
  EXPECT_TRUE(shows("kvferry_proxy_requests_queued 0"));
  EXPECT_TRUE(shows("kvferry_proxy_body_bytes " + std::to_string(kPrompt.size())));
  waiting->send(request("/v1/completions", kPrompt));
  ASSERT_TRUE(shows("kvferry_proxy_requests_queued 1"));
  decoder.behaviour.delay = 0ms;
  EXPECT_EQ(decoder.wake(), 1U);
  ASSERT_TRUE(until([&] { return waiting->status() != 0 && running->status() == 200; }));
  EXPECT_EQ(waiting->status(), 200);
  EXPECT_EQ(prefiller.requests, 2U);
}

TEST_F(Front, ARequestThatWaitsTooLongGets503) {
  config.max_concurrent = 1;
  config.queue_timeout = 100ms;
  decoder.behaviour.delay = mock::kUntilWoken;
  start();
  auto running = client(), waiting = client();
  running->send(request("/v1/completions", kPrompt));
  ASSERT_TRUE(until([&] { return decoder.running == 1; }));
  waiting->send(request("/v1/completions", kPrompt));
  ASSERT_TRUE(until([&] { return waiting->status() != 0; }));
  EXPECT_EQ(waiting->status(), 503);
}

TEST_F(Front, AKeyGuardsTheFront) {
  config.require_key = "front-key";
  start();
  EXPECT_EQ(ask(kPrompt)->status(), 401);
  EXPECT_EQ(ask(kPrompt, "/v1/completions", "Authorization: Bearer wrong\r\n")->status(), 401);
  EXPECT_EQ(prefiller.requests, 0U);
  EXPECT_EQ(ask(kPrompt, "/v1/completions", "Authorization: Bearer front-key\r\n")->status(), 200);
}

// Each of these would take what it says it will send; nothing of it is waited for.
TEST_F(Front, BodiesOfThoseWhoHaveNoKeyAreNotRead) {
  config.require_key = "front-key";
  start();
  const std::string large = " HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 100000000\r\n\r\n";
  EXPECT_TRUE(refused("POST /v1/completions" + large, 401));
  EXPECT_TRUE(refused("POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n", 401));
  EXPECT_TRUE(refused("POST /ping" + large, 200)) << "it needs no key";
  auto two = client();
  two->send("GET /metrics HTTP/1.1\r\nHost: t\r\n\r\nGET /ping HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
  ASSERT_TRUE(until([&] { return two->closed(); }));
  EXPECT_EQ(two->status(), 401);
  EXPECT_TRUE(two->has("HTTP/1.1 200 OK")) << "without a body the connection goes on";
}

// What is held counts, whether it is whole or not, and no longer than until its answer.
TEST_F(Front, AllBodiesTogetherAreLimited) {
  config.max_bodies = 100000;
  decoder.behaviour.delay = mock::kUntilWoken;
  start();
  const std::string large = R"({"prompt":")" + std::string(60000, 'a') + "\"}";
  const std::string post = "POST /v1/completions HTTP/1.1\r\nHost: t\r\nConnection: close\r\n";
  auto running = client(), slow = client();
  running->send(request("/v1/completions", large));
  ASSERT_TRUE(until([&] { return decoder.running == 1; }));
  slow->send(post + "Content-Length: 90000\r\n\r\n" + large.substr(0, 30000));
  ASSERT_TRUE(shows("kvferry_proxy_body_bytes " + std::to_string(large.size() + 30000)));
  const auto sized = ask(large);
  EXPECT_EQ(sized->status(), 503);
  EXPECT_TRUE(sized->has("the bodies of all requests together")) << sized->received();
  EXPECT_TRUE(refused(post + "Transfer-Encoding: chunked\r\n\r\nea60\r\n" + std::string(60000, ' '), 503));
  slow->leave();
  decoder.behaviour.delay = 0ms;
  EXPECT_EQ(decoder.wake(), 1U);
  ASSERT_TRUE(until([&] { return running->status() == 200; }));
  EXPECT_TRUE(shows("kvferry_proxy_body_bytes 0"));
  EXPECT_EQ(ask(large)->status(), 200);
}

TEST_F(Front, AdministrativePathsOfVllmAreNotForClients) {
  start();
  for (const char* path : {"/reset_prefix_cache", "/sleep", "/v1x", "/collective_rpc", "/"}) {
    EXPECT_EQ(ask("{}", path)->status(), 404) << path;
  }
  EXPECT_EQ(decoder.requests, 0U);
}

TEST_F(Front, PathsThatClimbOutOfWhatIsForwardedAreNotForClients) {
  start();
  for (const char* path : {"/v1/../sleep", "/v1/..", "/v1/./../sleep", "/v1/%2e%2e/sleep", "/v1/.%2E/sleep",
                           "/v1/..%2fsleep", "/v1/x%2F..%2F..%2Fsleep", "/v1/..\\sleep", "/v1/%5c../sleep"}) {
    EXPECT_EQ(ask("{}", path)->status(), 404) << path;
  }
  EXPECT_EQ(decoder.requests, 0U);
  EXPECT_EQ(ask("{}", "/v1/models/org%2Fname..x/...")->status(), 200) << "names may hold dots and slashes";
}

TEST_F(Front, MethodsThatAreForProxiesAreRefused) {
  start();
  for (const char* method : {"CONNECT", "TRACE", "PRI"}) {
    auto asked = client();
    asked->send(std::string(method) + " /v1/models HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
    ASSERT_TRUE(until([&] { return asked->closed(); })) << method;
    EXPECT_EQ(asked->status(), 405) << method;
  }
  EXPECT_EQ(decoder.requests, 0U);
}

// Forms pass unread, so what only the proxy may say must not stand in them, and a second type must not make one of
// JSON.
TEST_F(Front, FormsThatHideTransferParamsAreRefused) {
  start();
  const std::string path = "/v1/audio/transcriptions";
  const auto post = [&](const std::string& types, const std::string& body) {
    auto asked = client();
    asked->send("POST " + path + " HTTP/1.1\r\nHost: t\r\nConnection: close\r\n" + types +
                "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
    EXPECT_TRUE(until([&] { return asked->closed(); }));
    return asked->status();
  };
  const std::string form = "Content-Type: multipart/form-data; boundary=b\r\n";
  EXPECT_EQ(post(form, "--b\r\nContent-Disposition: form-data; name=\"kv_transfer_params\"\r\n\r\n{}\r\n--b--"), 400);
  EXPECT_EQ(post(form, "--b\r\nContent-Disposition: form-data; name=\"vllm_xargs\"\r\n\r\n{}\r\n--b--"), 400);
  for (const char* name : {"name*=utf-8''kv%5Ftransfer_params", "NAME*0=\"kv_trans\"; name*1=\"fer_params\""})
    EXPECT_EQ(post(form, "--b\r\nContent-Disposition: form-data; " + std::string(name) + "\r\n\r\n{}\r\n--b--"), 400);
  EXPECT_EQ(post(form + "Content-Type: application/json\r\n", "--b--"), 400) << "read as JSON, which it is not";
  EXPECT_EQ(decoder.requests, 0U);
  EXPECT_EQ(post(form, "--b\r\nContent-Disposition: form-data; name=\"language\"\r\n\r\nen\r\n--b--"), 200);
  EXPECT_EQ(
      post(form, "--b\r\nContent-Disposition: form-data; name=\"file\"; filename*=utf-8''a%20b\r\n\r\n2 * 3\r\n--b--"),
      200);
}

TEST_F(Front, HealthFollowsTheBackends) {
  start();
  EXPECT_EQ(ask("", "/health")->status(), 200);
  decoder.healthy = false;
  EXPECT_TRUE(until([&] { return ask("", "/health")->status() == 503; }));
  EXPECT_EQ(ask("", "/healthcheck")->status(), 200);
  EXPECT_EQ(ask(kPrompt)->status(), 503);
  EXPECT_EQ(prefiller.requests, 0U);
  decoder.healthy = true;
  EXPECT_TRUE(until([&] { return ask("", "/health")->status() == 200; }));
  EXPECT_EQ(ask(kPrompt)->status(), 200);
}

TEST_F(Front, MetricsCountLegs) {
  start();
  ask(kPrompt);
  const auto page = ask("", "/metrics");
  EXPECT_EQ(page->status(), 200);
  EXPECT_TRUE(page->has("kvferry_proxy_legs_total{leg=\"prefill\",status=\"200\",cause=\"ok\""));
  EXPECT_TRUE(page->has("kvferry_proxy_legs_total{leg=\"decode\",status=\"200\",cause=\"ok\""));
  EXPECT_TRUE(page->has("kvferry_proxy_handover_seconds_count 1"));
}

class Administration : public ProxySystem {
 protected:
  std::unique_ptr<RawClient> admin(const std::string& body, const std::string& key = "admin-key") {
    auto asked = std::make_unique<RawClient>(loop, proxy->admin_port());
    asked->send(request("/admin/backends", body, "Connection: close\r\nAuthorization: Bearer " + key + "\r\n"));
    EXPECT_TRUE(until([&] { return asked->closed(); }));
    return asked;
  }
};

TEST_F(Administration, BackendsAreAddedDrainedAndRemoved) {
  config.admin_key = "admin-key";
  mock::MockServer second{loop, deadlines};
  start();
  const std::string target = R"("role":"decode","url":")" + second.url() + "\"}";
  EXPECT_EQ(admin(R"({"action":"add",)" + target)->status(), 200);
  EXPECT_EQ(admin(R"({"action":"add",)" + target)->status(), 409);
  const std::string first = R"("role":"decode","url":")" + decoder.url() + "\"}";
  EXPECT_EQ(admin(R"({"action":"drain",)" + first)->status(), 200);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(ask(kPrompt)->status(), 200);
  EXPECT_EQ(second.requests, 4U);
  EXPECT_EQ(admin(R"({"action":"undrain",)" + first)->status(), 200);
  EXPECT_EQ(admin(R"({"action":"remove",)" + target)->status(), 200);
  EXPECT_EQ(admin(R"({"action":"remove",)" + target)->status(), 404);
  EXPECT_EQ(ask(kPrompt)->status(), 200);
  EXPECT_EQ(decoder.requests, 1U);
}

TEST_F(Administration, NeedsItsKey) {
  config.admin_key = "admin-key";
  start();
  EXPECT_EQ(admin("{}", "wrong")->status(), 401);
  EXPECT_EQ(admin("{}")->status(), 400);
}

TEST_F(Administration, ChangesNothingWithoutAKeySet) {
  start();
  EXPECT_EQ(admin(R"({"action":"remove","role":"decode","url":")" + decoder.url() + "\"}")->status(), 403);
}

}  // namespace
}  // namespace kvferry::proxy
