// Each trap that a proxy of this field is known to fall into, by its number in docs/proxy.md.

#include <algorithm>

#include "test/system/proxy/fixture.h"

namespace kvferry::proxy {
namespace {

using mock::member_text;

class Traps : public ProxySystem {};

TEST_F(Traps, Trap01PrefillerNeverSeesMinTokensAboveItsOneToken) {
  start();
  const auto answer = ask(R"({"prompt":"a prompt","min_tokens":50,"max_tokens":60})");
  EXPECT_EQ(answer->status(), 200);
  ASSERT_EQ(prefiller.seen.size(), 1U);
  EXPECT_NE(prefiller.seen[0].body.find("\"max_tokens\":1,"), std::string::npos);
  EXPECT_NE(prefiller.seen[0].body.find("\"min_tokens\":1,"), std::string::npos);
  EXPECT_EQ(prefiller.seen[0].body.find("50"), std::string::npos);
}

TEST_F(Traps, Trap02PrefillersOneTokenCannotStopTheRequest) {
  start();
  ask(R"({"prompt":"a prompt","stop":["x"],"stop_token_ids":[2]})");
  ASSERT_EQ(prefiller.seen.size(), 1U);
  EXPECT_NE(prefiller.seen[0].body.find("\"ignore_eos\":true"), std::string::npos);
  EXPECT_EQ(prefiller.seen[0].body.find("\"stop"), std::string::npos);
  EXPECT_NE(decoder.seen.at(0).body.find("\"stop\":[\"x\"]"), std::string::npos);
}

TEST_F(Traps, Trap03DecoderIsAskedOnlyAfterThePrefillerHasAnswered) {
  prefiller.behaviour.delay = mock::kUntilWoken;
  start();
  auto asked = client();
  asked->send(request("/v1/completions", kPrompt));
  ASSERT_TRUE(until([&] { return prefiller.running == 1; }));
  run_for(50ms);
  EXPECT_EQ(decoder.requests, 0U);
  EXPECT_EQ(prefiller.wake(), 1U);
  ASSERT_TRUE(until([&] { return decoder.requests == 1; }));
  EXPECT_EQ(prefiller.running, 0U);
}

TEST_F(Traps, Trap03AFailedPrefillerLeavesNoDecoderWaiting) {
  prefiller.behaviour.status = 500;
  config.local_prefill = false;
  start();
  EXPECT_EQ(ask(kPrompt)->status(), 500);
  EXPECT_EQ(decoder.requests, 0U);
}

TEST_F(Traps, Trap04WhatCannotBeSplitGoesToTheDecoderAloneWithoutParams) {
  start();
  const std::string body =
      R"({"prompt":"a prompt","n":2,"kv_transfer_params":{"remote_bootstrap_addr":"http://evil"}})";
  EXPECT_EQ(ask(body)->status(), 200);
  EXPECT_EQ(prefiller.requests, 0U);
  ASSERT_EQ(decoder.seen.size(), 1U);
  EXPECT_EQ(decoder.seen[0].body, R"({"prompt":"a prompt","n":2})");
  ask(R"({"input":["a","b"],"model":"m","kv_transfer_params":{}})", "/v1/embeddings");
  ASSERT_EQ(decoder.seen.size(), 2U);
  EXPECT_EQ(decoder.seen[1].target, "/v1/embeddings");
  EXPECT_EQ(decoder.seen[1].body, R"({"input":["a","b"],"model":"m"})");
}

TEST_F(Traps, Trap04ShortPromptsGoToTheDecoderAlone) {
  config.min_prompt_bytes = 1000;
  start();
  EXPECT_EQ(ask(kPrompt)->status(), 200);
  EXPECT_EQ(prefiller.requests, 0U);
  EXPECT_EQ(decoder.seen.at(0).body, kPrompt);
}

TEST_F(Traps, Trap05StatusAndContentTypeOfTheDecoderReachTheClient) {
  start();
  for (const int status : {201, 400, 404, 422, 429, 500, 507}) {
    decoder.behaviour.status = status;
    decoder.behaviour.content_type = "application/x-test; v=" + std::to_string(status);
    const auto answer = ask(kPrompt);
    EXPECT_EQ(answer->status(), status);
    EXPECT_TRUE(answer->has("Content-Type: application/x-test; v=" + std::to_string(status) + "\r\n"));
  }
}

TEST_F(Traps, Trap06ARetryOnTheDecoderGetsANewPrefillAndANewTransferId) {
  mock::MockServer second{loop, deadlines};
  decoder.behaviour.reset_before_head = true;
  second.behaviour.reset_before_head = true;
  add_decode(decoder);
  add_decode(second);
  start();
  auto asked = client();
  asked->send(request("/v1/completions", kPrompt));
  ASSERT_TRUE(until([&] { return decoder.requests + second.requests == 1; }));
  decoder.behaviour.reset_before_head = second.behaviour.reset_before_head = false;
  ASSERT_TRUE(until([&] { return asked->status() != 0; }));
  EXPECT_EQ(asked->status(), 200);
  ASSERT_EQ(prefiller.seen.size(), 2U);
  const std::string first = member_text(prefiller.seen[0].body, "transfer_id");
  const std::string retried = member_text(prefiller.seen[1].body, "transfer_id");
  EXPECT_NE(first, retried);
  EXPECT_TRUE(first.starts_with("xfer-"));
  EXPECT_EQ(
      member_text((decoder.seen.empty() || decoder.seen[0].body.find(retried) == std::string::npos ? second : decoder)
                      .seen.at(0)
                      .body,
                  "transfer_id"),
      retried);
  ASSERT_TRUE(until([&] { return bootstrap.released.size() == 1; }));
  EXPECT_EQ(bootstrap.released[0], first);
}

TEST_F(Traps, Trap07ConnectionsThatABackendClosedAreNotUsedAgain) {
  prefiller.behaviour.close_after_answer = decoder.behaviour.close_after_answer = true;
  prefiller.record = decoder.record = false;
  start();
  auto asked = client();
  for (int i = 1; i <= 300; ++i) {
    asked->send(request("/v1/completions", kPrompt));
    const std::string wanted = "\"finish_reason\"";
    ASSERT_TRUE(until([&] {
      size_t answers = 0;
      for (size_t at = 0; (at = asked->received().find(wanted, at)) != std::string::npos; ++at) ++answers;
      return answers == static_cast<size_t>(i);
    })) << i
        << ": " << asked->received().substr(asked->received().size() - std::min<size_t>(asked->received().size(), 700));
  }
  EXPECT_FALSE(asked->has("HTTP/1.1 5"));
}

TEST_F(Traps, Trap08AClientThatLeavesDuringPrefillClosesThePrefillersConnection) {
  prefiller.behaviour.delay = mock::kUntilWoken;
  start();
  Duration quickest = 1h;  // of some: others may have the cores meanwhile
  for (size_t i = 1; i <= 5; ++i) {
    auto asked = client();
    asked->send(request("/v1/completions", kPrompt));
    ASSERT_TRUE(until([&] { return prefiller.running == 1; }));
    const TimePoint left = clock.now();
    asked->leave();
    ASSERT_TRUE(until([&] { return prefiller.clients_lost == i; }));
    quickest = std::min(quickest, clock.now() - left);
  }
  EXPECT_LT(quickest, 200ms);
  EXPECT_EQ(decoder.requests, 0U);
  EXPECT_TRUE(nothing_pinned());
}

TEST_F(Traps, Trap09AClientThatLeavesBeforeTheDecoderAnswersReleasesTheParcel) {
  decoder.behaviour.delay = mock::kUntilWoken;
  start();
  Duration quickest = 1h;  // of some: others may have the cores meanwhile
  for (size_t i = 0; i < 5; ++i) {
    auto asked = client();
    asked->send(request("/v1/completions", kPrompt));
    ASSERT_TRUE(until([&] { return decoder.running == 1; }));
    const std::string id = member_text(prefiller.seen.back().body, "transfer_id");
    const TimePoint left = clock.now();
    asked->leave();
    ASSERT_TRUE(until([&] {
      const auto& released = bootstrap.released;  // one of them twice where its acknowledgement was late
      return decoder.clients_lost > i && std::find(released.begin(), released.end(), id) != released.end();
    }));
    quickest = std::min(quickest, clock.now() - left);
  }
  for (const std::string& target : bootstrap.asked) EXPECT_TRUE(target.ends_with("?force=1")) << target;
  EXPECT_LT(quickest, 300ms);
  EXPECT_TRUE(nothing_pinned());
}

TEST_F(Traps, Trap09WithVllmsOwnBootstrapServerAReleasePingIsSent) {
  bootstrap.parcels = false;
  decoder.behaviour.delay = mock::kUntilWoken;
  start();
  auto asked = client();
  asked->send(request("/v1/completions", kPrompt, "Authorization: Bearer mine\r\n"));
  ASSERT_TRUE(until([&] { return decoder.running == 1; }));
  asked->leave();
  ASSERT_TRUE(until([&] { return decoder.pinged.size() == 1; }));
  EXPECT_EQ(decoder.pinged[0], member_text(prefiller.seen.at(0).body, "transfer_id"));
  EXPECT_TRUE(nothing_pinned());
}

TEST_F(Traps, Trap10ADecoderThatNeverAnswersEndsByTheLeaseAndReleases) {
  decoder.behaviour.delay = mock::kUntilWoken;
  start();
  auto asked = client();
  asked->send(request("/v1/completions", kPrompt, "Connection: close\r\n"));
  ASSERT_TRUE(until([&] { return decoder.running == 1; }));
  clock.forward(config.lease - 1min);
  run_for(200ms);
  EXPECT_EQ(asked->status(), 0) << asked->received();
  clock.forward(1min);
  ASSERT_TRUE(until([&] { return asked->closed(); }));
  EXPECT_EQ(asked->status(), 504);
  EXPECT_TRUE(asked->has("\"error\""));
  EXPECT_TRUE(until([&] { return decoder.clients_lost == 1; }));
  EXPECT_TRUE(nothing_pinned());
}

TEST_F(Traps, Trap10AHeadWithoutABodyIsNotYetAnAnswer) {
  decoder.behaviour.first_delay = mock::kUntilWoken;
  start();
  auto asked = client();
  asked->send(request("/v1/completions", kStream));
  ASSERT_TRUE(until([&] { return asked->status() == 200; }));
  asked->leave();
  ASSERT_TRUE(until([&] { return bootstrap.released.size() == 1; }));
}

TEST_F(Traps, Trap11TheDecoderGetsTheClientsBytes) {
  start();
  const std::string rest = " \"z\" : 1.500,\n\"prompt\":\"\\u00e9 ferry \\/\" ,\"a\":[1 , 2]}";
  ask("{" + rest);
  ASSERT_EQ(decoder.seen.size(), 1U);
  const std::string id = member_text(prefiller.seen.at(0).body, "transfer_id");
  EXPECT_EQ(
      decoder.seen[0].body,
      R"({"kv_transfer_params":{"do_remote_decode":false,"do_remote_prefill":true,"remote_bootstrap_addr":"http://127.0.0.1:)" +
          std::to_string(bootstrap.port()) + R"(","remote_engine_id":"engine-1","transfer_id":")" + id + "\"}," + rest);
}

TEST_F(Traps, Trap12EventsAreRelayedAsTheyCome) {
  decoder.behaviour.event_pause = mock::kUntilWoken;
  decoder.behaviour.events = 3;
  start();
  auto asked = client();
  asked->send(request("/v1/completions", kStream));
  ASSERT_TRUE(until([&] { return asked->has("\"index\":0"); }));
  EXPECT_FALSE(asked->has("\"index\":1"));
  ASSERT_TRUE(until([&] { return decoder.wake() == 1; }));
  ASSERT_TRUE(until([&] { return asked->has("\"index\":1"); }));
  EXPECT_FALSE(asked->has("\"index\":2"));
  ASSERT_TRUE(until([&] { return decoder.wake() == 1; }));
  ASSERT_TRUE(until([&] { return asked->has("[DONE]"); }));
  EXPECT_TRUE(asked->has("Content-Type: text/event-stream; charset=utf-8\r\n"));
}

TEST_F(Traps, Trap13PromptsOfSeveralMegabytesPassAndLargerOnesAreRefused) {
  config.max_body = 8 << 20;
  start();
  const std::string prompt(5 << 20, 'p');
  EXPECT_EQ(ask(R"({"prompt":")" + prompt + "\"}")->status(), 200);
  EXPECT_NE(decoder.seen.at(0).body.find(prompt), std::string::npos);
  const auto refused = client();
  refused->send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 9000000\r\n\r\n");
  ASSERT_TRUE(until([&] { return refused->closed(); }));
  EXPECT_EQ(refused->status(), 413);
}

TEST_F(Traps, Trap14AuthorizationReachesBothLegs) {
  start();
  ask(kPrompt, "/v1/completions", "Authorization: Bearer mine\r\ntraceparent: 00-aa-bb-01\r\n");
  for (const auto* server : {&prefiller, &decoder}) {
    EXPECT_EQ(server->seen.at(0).headers.get("authorization"), "Bearer mine");
    EXPECT_EQ(server->seen.at(0).headers.get("traceparent"), "00-aa-bb-01");
  }
}

TEST_F(Traps, Trap14AConfiguredKeyReplacesTheClients) {
  config.api_key = "ours";
  start();
  ask(kPrompt, "/v1/completions", "Authorization: Bearer mine\r\n");
  for (const auto* server : {&prefiller, &decoder}) {
    EXPECT_EQ(server->seen.at(0).headers.get("authorization"), "Bearer ours");
    EXPECT_EQ(server->seen.at(0).headers.count("authorization"), 1U);
  }
}

TEST_F(Traps, Trap15BackendsAndFrontMayBeIPv6) {
  config.host = "::1";
  start();
  boost::asio::ip::tcp::socket socket(loop);
  boost::system::error_code error;
  socket.connect({boost::asio::ip::make_address("::1"), proxy->port()}, error);
  EXPECT_FALSE(error) << error.message();
}

TEST_F(Traps, Trap16ABadBodyIs400InOpenAIsShape) {
  start();
  for (const char* body : {"", "nonsense", "[1,2]", "{\"prompt\":", "{\"prompt\":\"a\"} trailing"}) {
    const auto answer = ask(body);
    EXPECT_EQ(answer->status(), 400) << body;
    EXPECT_TRUE(answer->has(R"({"error":{"message":)")) << body;
    EXPECT_TRUE(answer->has(R"("type":"invalid_request_error","param":null,"code":400}})")) << body;
  }
  EXPECT_EQ(prefiller.requests + decoder.requests, 0U);
}

}  // namespace
}  // namespace kvferry::proxy
