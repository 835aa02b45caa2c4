// Whatever ends a request, its parcel does not stay behind.

#include <algorithm>
#include <set>

#include "test/system/proxy/fixture.h"

namespace kvferry::proxy {
namespace {

using mock::member_text;

class ReleaseOnEveryPath : public ProxySystem {
 protected:
  // The transfer id that the prefiller was last given.
  std::string last_id() const { return member_text(prefiller.seen.back().body, "transfer_id"); }
  bool released_last() {
    return until([&] { return !bootstrap.released.empty() && bootstrap.released.back() == last_id(); }) &&
           nothing_pinned();
  }
};

TEST_F(ReleaseOnEveryPath, NotReleasedWhenTheDecoderHasFetchedIt) {
  start();
  EXPECT_EQ(ask(kPrompt)->status(), 200);
  EXPECT_EQ(ask(kStream)->status(), 200);
  EXPECT_TRUE(nothing_pinned());
  run_for(50ms);
  EXPECT_TRUE(bootstrap.asked.empty());
}

TEST_F(ReleaseOnEveryPath, DecoderRefuses) {
  decoder.behaviour.status = 404;
  start();
  EXPECT_EQ(ask(kPrompt)->status(), 404);
  EXPECT_TRUE(released_last());
}

TEST_F(ReleaseOnEveryPath, DecoderFails) {
  decoder.behaviour.status = 500;
  start();
  EXPECT_EQ(ask(kPrompt)->status(), 500);
  EXPECT_TRUE(released_last());
}

TEST_F(ReleaseOnEveryPath, DecoderClosesWithoutAnAnswer) {
  decoder.behaviour.reset_before_head = true;
  start();
  EXPECT_EQ(ask(kPrompt)->status(), 502);
  EXPECT_TRUE(released_last());
  EXPECT_EQ(bootstrap.released.size(), prefiller.seen.size());
}

TEST_F(ReleaseOnEveryPath, DecoderCannotBeReached) {
  config.health_interval = 1h;  // so that only requests find out
  config.connect_timeout = 1h;  // and no limit ends them
  start();
  decoder.stop();
  EXPECT_EQ(ask(kPrompt)->status(), 502);
  EXPECT_TRUE(released_last());
  // Its breaker is open for half a second at first, which may have passed; each further try doubles that.
  size_t before = 0;
  EXPECT_TRUE(until([&] {
    before = prefiller.requests;
    return ask(kPrompt)->status() == 503;
  }));
  EXPECT_EQ(prefiller.requests, before) << "the prefiller was run for a decoder that is known to be dead";
}

TEST_F(ReleaseOnEveryPath, DecoderStreamFailsBeforeItsFirstEvent) {
  decoder.behaviour.break_after_events = 0;
  start();
  ask(kStream);
  EXPECT_TRUE(released_last());
}

// vLLM's Responses API says that the response is in progress before its engine has the request.
class ReleaseOfResponses : public ReleaseOnEveryPath {
 protected:
  std::unique_ptr<RawClient> in_progress(const std::string& version = "HTTP/1.1") {
    auto asked = client();
    std::string text = request("/v1/responses", kBody);
    asked->send(text.replace(text.find("HTTP/1.1"), version.size(), version));
    EXPECT_TRUE(until([&] { return asked->has("event: response.in_progress"); }));
    settle();
    return asked;
  }
  const std::string kBody = R"({"model":"m","input":"tell me a story about ferries","stream":true})";
};

TEST_F(ReleaseOfResponses, ClientLeavesBeforeTheDecodersEngineHasSaidAnything) {
  decoder.behaviour.first_delay = mock::kUntilWoken;
  start();
  for (const std::string version : {"HTTP/1.1", "HTTP/1.0"}) {
    in_progress(version)->leave();
    EXPECT_TRUE(released_last()) << version;
  }
}

TEST_F(ReleaseOfResponses, DecoderBreaksOffBeforeItsEngineHasSaidAnything) {
  decoder.behaviour.break_after_events = 0;
  start();
  EXPECT_TRUE(ask(kBody, "/v1/responses")->has("event: response.in_progress"));
  EXPECT_TRUE(released_last());
}

TEST_F(ReleaseOfResponses, TheLeaseEndsBeforeTheDecodersEngineHasSaidAnything) {
  config.stream_idle_timeout = config.lease * 2;
  decoder.behaviour.first_delay = mock::kUntilWoken;
  start();
  const auto asked = in_progress();
  clock.forward(config.lease);
  EXPECT_TRUE(until([&] { return asked->has("\"code\":504"); }));
  EXPECT_TRUE(until([&] { return decoder.running == 0; }));
  EXPECT_TRUE(nothing_pinned());
}

TEST_F(ReleaseOfResponses, NotReleasedOnceAnEventHasComeOutOfTheEngine) {
  decoder.behaviour.events = 2;
  decoder.behaviour.event_pause = mock::kUntilWoken;
  start();
  for (const std::string version : {"HTTP/1.1", "HTTP/1.0"}) {
    const auto asked = in_progress(version);
    ASSERT_TRUE(until([&] { return asked->has("\"index\":0"); }));
    EXPECT_TRUE(nothing_pinned());
    ASSERT_TRUE(until([&] { return decoder.wake() == 1; }));
    ASSERT_TRUE(until([&] { return asked->has("[DONE]"); }));
  }
  EXPECT_TRUE(bootstrap.asked.empty());
}

TEST_F(ReleaseOnEveryPath, PrefillerTimesOut) {
  config.prefill_timeout = 200ms;
  prefiller.behaviour.delay = mock::kUntilWoken;
  start();
  EXPECT_EQ(ask(kPrompt)->status(), 200) << "the decoder computes the prompt itself";
  // There may be more of them: the limit can pass before the prefiller has read anything.
  EXPECT_TRUE(until([&] {
    const std::set<std::string> released(bootstrap.released.begin(), bootstrap.released.end());
    return !prefiller.seen.empty() && std::all_of(prefiller.seen.begin(), prefiller.seen.end(), [&](const auto& seen) {
      return released.contains(member_text(seen.body, "transfer_id"));
    });
  }));
  EXPECT_TRUE(nothing_pinned());
  EXPECT_EQ(decoder.seen.back().body, kPrompt);
}

TEST_F(ReleaseOnEveryPath, PrefillerRefusesTheClientsRequest) {
  prefiller.behaviour.status = 400;
  start();
  const auto answer = ask(kPrompt);
  EXPECT_EQ(answer->status(), 400);
  EXPECT_TRUE(answer->has("mock refusal"));
  EXPECT_EQ(decoder.requests, 0U);
  EXPECT_TRUE(nothing_pinned());
}

TEST_F(ReleaseOnEveryPath, RepeatedUntilAcknowledged) {
  decoder.behaviour.status = 500;
  bootstrap.pending_answers = 3;
  start();
  ask(kPrompt);
  EXPECT_TRUE(released_last());
  EXPECT_EQ(bootstrap.asked.size(), 4U);
}

TEST_F(ReleaseOnEveryPath, RepeatedWhileTheBootstrapServerIsDown) {
  decoder.behaviour.delay = mock::kUntilWoken;
  start();
  auto asked = client();
  asked->send(request("/v1/completions", kPrompt));
  ASSERT_TRUE(until([&] { return decoder.running == 1; }));
  bootstrap.down = true;
  asked->leave();
  run_for(200ms);
  EXPECT_TRUE(bootstrap.released.empty());
  EXPECT_NE(exposition().find("kvferry_proxy_parcels_pinned 1"), std::string::npos);
  bootstrap.down = false;
  EXPECT_TRUE(released_last());
}

TEST_F(ReleaseOnEveryPath, GivenUpWhenTheOwnersLeaseHasEnded) {
  decoder.behaviour.status = 500;
  bootstrap.pending_answers = 1000000;
  start();
  ask(kPrompt);
  ASSERT_TRUE(until([&] { return !bootstrap.asked.empty(); }));
  EXPECT_NE(exposition().find("kvferry_proxy_parcels_pinned 1"), std::string::npos);
  clock.forward(config.lease);
  EXPECT_TRUE(nothing_pinned());
  EXPECT_NE(exposition().find("kvferry_proxy_parcels_given_up 1"), std::string::npos);
}

TEST_F(ReleaseOnEveryPath, ClientLeavesAtAnyMoment) {
  prefiller.behaviour.delay = 3ms;
  decoder.behaviour.delay = 3ms;
  decoder.behaviour.event_pause = 1ms;
  prefiller.record = decoder.record = false;
  start();
  for (int i = 0; i < 300; ++i) {
    auto asked = client();
    asked->send(request("/v1/completions", i % 2 == 0 ? kPrompt : kStream));
    run_for(std::chrono::microseconds(random.below(12000)));
    asked->leave();
  }
  EXPECT_TRUE(nothing_pinned());
  EXPECT_TRUE(until([&] { return prefiller.running + decoder.running == 0; }));
  EXPECT_TRUE(until([&] { return exposition().find("kvferry_proxy_requests_in_flight 0") != std::string::npos; }));
  EXPECT_TRUE(until([&] { return exposition().find("kvferry_proxy_connections 0") != std::string::npos; }));
}

TEST_F(ReleaseOnEveryPath, DrainReleasesWhatIsLeft) {
  config.drain_limit = 100ms;
  decoder.behaviour.delay = mock::kUntilWoken;
  start();
  auto asked = client();
  asked->send(request("/v1/completions", kPrompt));
  ASSERT_TRUE(until([&] { return decoder.running == 1; }));
  bool drained = false;
  proxy->drain([&] { drained = true; });
  ASSERT_TRUE(until([&] { return drained; }));
  EXPECT_EQ(bootstrap.released.size(), 1U);
}

TEST_F(ReleaseOnEveryPath, DrainLetsStreamsFinish) {
  decoder.behaviour.event_pause = 20ms;
  decoder.behaviour.events = 5;
  start();
  auto asked = client();
  asked->send(request("/v1/completions", kStream));
  ASSERT_TRUE(until([&] { return asked->has("\"index\":0"); }));
  bool drained = false;
  proxy->drain([&] { drained = true; });
  ASSERT_TRUE(until([&] { return drained; }));
  ASSERT_TRUE(until([&] { return asked->closed(); }));
  EXPECT_TRUE(asked->has("[DONE]"));
  EXPECT_TRUE(asked->received().ends_with("0\r\n\r\n"));
}

// What runs beside the requests refers to the proxy, and ends with it.
TEST_F(ReleaseOnEveryPath, EndsWithTheProxy) {
  decoder.behaviour.delay = mock::kUntilWoken;
  start();
  auto asked = client();
  asked->send(request("/v1/completions", kPrompt));
  ASSERT_TRUE(until([&] { return decoder.running == 1; }));
  bootstrap.pending_answers = 1'000'000;
  asked->leave();
  ASSERT_TRUE(until([&] { return bootstrap.asked.size() >= 2; }));
  proxy.reset();
  const size_t asked_then = bootstrap.asked.size();
  run_for(300ms);  // six times the pause between two tries
  EXPECT_EQ(bootstrap.asked.size(), asked_then);
}

class PrefillerRestarts : public ProxySystem {};

TEST_F(PrefillerRestarts, TheDecoderGetsTheNewEngineId) {
  config.upstream_idle = 1h;    // a connection that its prefiller has closed says that it was restarted
  config.health_interval = 1h;  // and no look at the bootstrap server is under way meanwhile
  start();
  EXPECT_EQ(ask(kPrompt)->status(), 200);
  prefiller.stop();
  bootstrap.engine_id = "engine-2";
  prefiller.start();
  EXPECT_EQ(ask(kPrompt)->status(), 200);
  EXPECT_EQ(member_text(decoder.seen.back().body, "remote_engine_id"), "engine-2");
}

// The bootstrap server was restarted, too, and not all ranks have registered again.
TEST_F(PrefillerRestarts, ARankThatIsNotBackYetKeepsItsEngineId) {
  bootstrap.more_engines = {"engine-dp1"};
  config.policy = Policy::round_robin;
  config.upstream_idle = 1h;
  config.health_interval = 1h;
  start();
  EXPECT_EQ(ask(kPrompt)->status(), 200);
  prefiller.stop();
  bootstrap.more_engines.clear();
  prefiller.start();
  EXPECT_EQ(ask(kPrompt)->status(), 200);
  EXPECT_EQ(prefiller.seen.back().headers.get("x-data-parallel-rank"), "1");
  EXPECT_EQ(member_text(decoder.seen.back().body, "remote_engine_id"), "engine-dp1");
}

TEST_F(PrefillerRestarts, AQueryThatWasUnderWayBeforeItIsNotBelieved) {
  config.upstream_idle = 1h;
  config.health_interval = 20ms;
  start();
  EXPECT_EQ(ask(kPrompt)->status(), 200);
  http::Event answers;
  bootstrap.late = &answers;
  ASSERT_TRUE(until([&] { return answers.waiting(); }));
  bootstrap.late = nullptr;
  prefiller.stop();
  bootstrap.engine_id = "engine-2";
  prefiller.start();
  const size_t queries = bootstrap.queries;
  auto asked = client();
  asked->send(request("/v1/completions", kPrompt));
  ASSERT_TRUE(until([&] { return prefiller.requests == 2; }));
  settle();
  EXPECT_EQ(bootstrap.queries, queries) << "it waits for the one that is under way";
  answers.set();
  ASSERT_TRUE(until([&] { return asked->closed() || asked->status() == 200; }));
  EXPECT_EQ(member_text(decoder.seen.back().body, "remote_engine_id"), "engine-2");
}

TEST_F(PrefillerRestarts, ItIsAskedForAgainWithoutAnyTraffic) {
  start();
  bootstrap.engine_id = "engine-2";
  const size_t queries = bootstrap.queries;
  ASSERT_TRUE(until([&] { return bootstrap.queries >= queries + 2; }));
  EXPECT_EQ(ask(kPrompt)->status(), 200);
  EXPECT_EQ(member_text(decoder.seen.back().body, "remote_engine_id"), "engine-2");
}

TEST_F(PrefillerRestarts, WhileItIsAwayTheDecoderComputesThePrompt) {
  start();
  prefiller.stop();
  EXPECT_EQ(ask(kPrompt)->status(), 200);
  EXPECT_EQ(decoder.seen.back().body, kPrompt);
}

TEST_F(PrefillerRestarts, AnotherPrefillerTakesOver) {
  mock::MockServer second{loop, deadlines};
  add_prefill(prefiller, bootstrap.port());
  add_prefill(second, bootstrap.port());
  config.policy = Policy::round_robin;
  start();
  prefiller.stop();
  for (int i = 0; i < 6; ++i) EXPECT_EQ(ask(kPrompt)->status(), 200);
  EXPECT_EQ(second.requests, 6U);
}

}  // namespace
}  // namespace kvferry::proxy
