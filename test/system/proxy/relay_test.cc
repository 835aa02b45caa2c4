// The way back: bytes, framing, failures in the middle, clients that are old, slow or gone.

#include "test/system/proxy/fixture.h"

namespace kvferry::proxy {
namespace {

class Relay : public ProxySystem {
 protected:
  // What the decoder itself would have sent as a body.
  std::string direct(const std::string& body) {
    RawClient asked(loop, decoder.port());
    asked.send(request("/v1/completions", body));
    EXPECT_TRUE(
        until([&] { return asked.received().ends_with("0\r\n\r\n") || asked.has("finish_reason\":\"length\"}]}"); }));
    return asked.body();
  }
};

TEST_F(Relay, EventStreamSplitAtEveryByteIsTheSame) {
  decoder.behaviour.events = 2;
  decoder.behaviour.event_bytes = 90;
  decoder.record = prefiller.record = false;
  start();
  const std::string wanted = direct(kStream);
  ASSERT_GT(wanted.size(), 200U);
  auto asked = client();
  for (size_t cut = 1; cut < wanted.size() + 150; ++cut) {
    decoder.behaviour.split_at = cut;
    auto one = client();
    one->send(request("/v1/completions", kStream));
    ASSERT_TRUE(until([&] { return one->received().ends_with("0\r\n\r\n"); })) << cut;
    ASSERT_EQ(one->body(), wanted) << cut;
  }
}

TEST_F(Relay, EveryFramingOfAPlainAnswer) {
  start();
  const std::string text =
      R"({"object":"text_completion","choices":[{"index":0,"text":"hello","finish_reason":"length"}]})";
  EXPECT_EQ(ask(kPrompt)->body(), text);
  decoder.behaviour.body = mock::Body::until_close;
  const auto open_ended = ask(kPrompt);
  EXPECT_EQ(open_ended->body(), text);
  EXPECT_TRUE(open_ended->has("Connection: close\r\n"));
  decoder.behaviour.body = mock::Body::chunked;
  const auto chunked = ask(kPrompt);
  EXPECT_TRUE(chunked->has("Transfer-Encoding: chunked\r\n"));
  EXPECT_TRUE(chunked->received().ends_with("0\r\n\r\n"));
}

TEST_F(Relay, ClientsOfHttp10GetTheBodyWithoutChunks) {
  decoder.behaviour.body = mock::Body::chunked;
  start();
  auto asked = client();
  asked->send("POST /v1/completions HTTP/1.0\r\nContent-Length: " + std::to_string(kPrompt.size()) + "\r\n\r\n" +
              kPrompt);
  ASSERT_TRUE(until([&] { return asked->closed(); }));
  EXPECT_FALSE(asked->has("Transfer-Encoding"));
  EXPECT_TRUE(asked->body().starts_with("{\"object\""));
  EXPECT_TRUE(asked->body().ends_with("}]}"));
}

TEST_F(Relay, RequestsOnOneConnectionFollowEachOther) {
  start();
  auto asked = client();
  asked->send(request("/v1/completions", kPrompt) + request("/v1/completions", kStream) +
              request("/v1/completions", kPrompt, "Connection: close\r\n"));
  ASSERT_TRUE(until([&] { return asked->closed(); }));
  EXPECT_EQ(decoder.seen.size(), 3U);
  EXPECT_EQ(decoder.seen[1].body.substr(decoder.seen[1].body.find(",\"model\"") + 1), kStream.substr(1));
}

TEST_F(Relay, ABrokenStreamEndsWithAnErrorEvent) {
  decoder.behaviour.break_after_events = 2;
  start();
  const auto answer = ask(kStream);
  EXPECT_EQ(answer->status(), 200);
  EXPECT_TRUE(answer->has("\"index\":1"));
  EXPECT_TRUE(answer->has("data: {\"error\":{\"message\":"));
  EXPECT_TRUE(answer->received().ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"));
}

TEST_F(Relay, AStreamBrokenWithinAChunkIsCutOff) {
  decoder.behaviour.break_after_events = 2;
  decoder.behaviour.break_in_chunk = true;
  start();
  const auto answer = ask(kStream);
  EXPECT_FALSE(answer->received().ends_with("0\r\n\r\n"));
  EXPECT_FALSE(answer->has("[DONE]"));
}

TEST_F(Relay, AHalfAnswerIsNotPassedOffAsWhole) {
  decoder.behaviour.half_answer = true;
  start();
  const auto answer = ask(kPrompt);
  EXPECT_TRUE(answer->closed());
  EXPECT_EQ(answer->body().find("finish_reason"), std::string::npos);
}

TEST_F(Relay, ASilentStreamEndsByTheIdleTimeout) {
  config.stream_idle_timeout = 200ms;
  decoder.behaviour.event_pause = mock::kUntilWoken;
  start();
  const auto answer = ask(kStream);
  EXPECT_TRUE(answer->has("data: {\"error\":"));
  EXPECT_TRUE(answer->has("\"code\":504"));
  EXPECT_TRUE(until([&] { return decoder.clients_lost == 1; }));
}

TEST_F(Relay, AClientThatLeavesEndsTheDecodersStream) {
  decoder.behaviour.event_pause = mock::kUntilWoken;
  start();
  auto asked = client();
  asked->send(request("/v1/completions", kStream));
  ASSERT_TRUE(until([&] { return asked->has("\"index\":0"); }));
  ASSERT_TRUE(until([&] { return decoder.wake() == 1; }));
  ASSERT_TRUE(until([&] { return asked->has("\"index\":1"); }));
  asked->leave();
  // No further event had to come for it.
  ASSERT_TRUE(until([&] { return decoder.clients_lost == 1; }));
  EXPECT_EQ(decoder.events_sent, 2U);
}

TEST_F(Relay, AClientThatLeavesInTheMidstOfEventsEndsThem) {
  decoder.behaviour.event_pause = 5ms;
  decoder.behaviour.events = 100000;
  start();
  auto asked = client();
  asked->send(request("/v1/completions", kStream));
  ASSERT_TRUE(until([&] { return asked->has("\"index\":3"); }));
  asked->leave();
  ASSERT_TRUE(until([&] { return decoder.clients_lost == 1; }));
}

TEST_F(Relay, ASlowReaderHoldsTheDecoderBack) {
  decoder.behaviour.events = 200000;
  decoder.behaviour.event_bytes = 1000;
  start();
  boost::asio::ip::tcp::socket reader(loop);
  reader.open(boost::asio::ip::tcp::v4());
  reader.set_option(boost::asio::socket_base::receive_buffer_size(4096));
  reader.connect({boost::asio::ip::make_address("127.0.0.1"), proxy->port()});
  const std::string text = request("/v1/completions", kStream);
  boost::asio::write(reader, boost::asio::buffer(text));
  ASSERT_TRUE(until([&] { return decoder.events_sent > 0; }));
  size_t before = 0;
  // It stops when the sockets' buffers are full, far from 200 MB.
  ASSERT_TRUE(until([&] {
    before = decoder.events_sent;
    run_for(200ms);
    return decoder.events_sent == before;
  }));
  EXPECT_LT(before, 1000U) << "of 1,000 bytes: the kernel's buffers are bounded, too";
  reader.close();
  EXPECT_TRUE(until([&] { return decoder.running == 0; }));
}

TEST_F(Relay, HeadersPassButForThoseOfTheConnection) {
  start();
  const auto answer =
      ask(kPrompt, "/v1/completions",
          "X-Custom: kept\r\nX-Hop: dropped\r\nConnection: x-hop\r\nTE: trailers\r\nX-Request-Id: mine-1\r\n");
  ASSERT_EQ(decoder.seen.size(), 1U);
  for (const auto* server : {&prefiller, &decoder}) {
    const http::Headers& headers = server->seen[0].headers;
    EXPECT_EQ(headers.get("x-custom"), "kept");
    EXPECT_EQ(headers.get("x-hop"), std::nullopt);
    EXPECT_EQ(headers.get("te"), std::nullopt);
    EXPECT_EQ(headers.get("x-request-id"), "mine-1");
    EXPECT_EQ(headers.count("x-request-id"), 1U);
  }
  EXPECT_EQ(prefiller.seen[0].headers.get("x-data-parallel-rank"), "0");
  EXPECT_EQ(decoder.seen[0].headers.get("x-data-parallel-rank"), std::nullopt);
  EXPECT_TRUE(answer->has("X-Request-Id: mine-1\r\n"));
  EXPECT_TRUE(answer->has("X-Mock: answer\r\n"));
}

TEST_F(Relay, DebugHeadersNameTheBackendsOnDemand) {
  config.debug_headers = true;
  start();
  const auto answer = ask(kPrompt);
  EXPECT_TRUE(answer->has("X-KVFerry-Prefill: 127.0.0.1:" + std::to_string(prefiller.port())));
  EXPECT_TRUE(answer->has("X-KVFerry-Decode: 127.0.0.1:" + std::to_string(decoder.port())));
}

TEST_F(Relay, NixlParamsOfThePrefillerReachTheDecoder) {
  config.dialect = Dialect::nixl;
  add_prefill(prefiller, std::nullopt);
  start();
  EXPECT_EQ(ask(kPrompt)->status(), 200);
  EXPECT_NE(prefiller.seen.at(0).body.find("\"remote_block_ids\":null"), std::string::npos);
  EXPECT_EQ(decoder.seen.at(0).body, kPrompt) << "the mock returned no params, so there are none to pass on";
}

}  // namespace
}  // namespace kvferry::proxy
