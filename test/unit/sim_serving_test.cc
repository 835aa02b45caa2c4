#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sim/serving.h"
#include "test/support/sim_server.h"

namespace kvferry::sim {
namespace {

class SimServing : public ::testing::Test {
 protected:
  std::string prompt(size_t bytes) { return random_text(random_, bytes); }
  void expect_clean(const TestServer& server) {
    const SchedulerStats stats = server.stats();
    EXPECT_EQ(stats.waiting + stats.loading + stats.running + stats.held + stats.draining, 0u);
    EXPECT_EQ(stats.blocks.used, 0u);
  }

  SeededRandom random_{21};
  FakeClock clock_;
  KvExchange exchange_;
  const ModelConfig config_ = small_config();
};

TEST_F(SimServing, ManyRequestsTogetherGetTheAnswersThatEachGetsAlone) {
  TestServer server(config_, 1, nullptr, clock_);
  TestServer crowded(config_, 2, nullptr, clock_, {.scheduler = {.max_sequences = 5, .max_batched_tokens = 24}});
  std::vector<std::shared_ptr<Answer>> alone;
  std::vector<std::shared_ptr<Answer>> together;
  for (size_t i = 0; i < 12; ++i) {
    GenerationRequest request = greedy_request(prompt(5 + 13 * i), 8);
    request.sampling.temperature = i % 2 == 0 ? 0.0 : 0.9;
    request.sampling.seed = i;
    alone.push_back(server.submit(request));
    server.run();
    together.push_back(crowded.submit(request));
  }
  crowded.run();
  for (size_t i = 0; i < alone.size(); ++i) {
    ASSERT_EQ(alone[i]->tokens.size(), 8u);
    EXPECT_EQ(together[i]->tokens, alone[i]->tokens);
    EXPECT_EQ(together[i]->logprobs, alone[i]->logprobs);
    EXPECT_EQ(together[i]->text, alone[i]->text);
    EXPECT_EQ(together[i]->end->reason, FinishReason::length);
  }
  expect_clean(crowded);
}

TEST_F(SimServing, APromptSeenBeforeIsFoundInThePrefixCacheAndAnsweredAlike) {
  TestServer server(config_, 1, nullptr, clock_);
  const std::string text = prompt(100);
  const auto first = server.submit(greedy_request(text, 5));
  server.run();
  const auto second = server.submit(greedy_request(text, 5));
  server.run();
  EXPECT_EQ(first->end->cached_tokens, 0u);
  EXPECT_EQ(second->end->cached_tokens, 96u);
  EXPECT_EQ(second->logprobs, first->logprobs);
  GenerationRequest salted = greedy_request(text, 5);
  salted.cache_salt = "another tenant";
  const auto third = server.submit(salted);
  server.run();
  EXPECT_EQ(third->end->cached_tokens, 0u);
}

struct Disaggregation {
  size_t prefill_tp;
  size_t decode_tp;
};
class SimDisaggregation : public SimServing, public ::testing::WithParamInterface<Disaggregation> {};

TEST_P(SimDisaggregation, AnswersEqualThoseOfOneServerTokenByToken) {
  TestServer single(config_, 1, nullptr, clock_);
  TestServer prefiller(config_, GetParam().prefill_tp, &exchange_, clock_, {.scheduler = {.max_batched_tokens = 64}});
  TestServer decoder(config_, GetParam().decode_tp, &exchange_, clock_);
  for (size_t i = 0; i < 6; ++i) {
    const size_t lengths[] = {0, 7, 8, 64, 100, 181};
    GenerationRequest request = greedy_request(prompt(lengths[i]), 10);
    const std::string id = "xfer-" + std::to_string(i);
    const auto expected = single.submit(request);
    single.run();
    const auto prefilled = prefiller.submit(prefill_leg(request, id));
    const auto decoded = decoder.submit(decode_leg(request, id));
    prefiller.run();
    EXPECT_EQ(prefiller.stats().held, 1u);
    decoder.run();
    exchange_.deliver();
    decoder.run();
    prefiller.run();
    ASSERT_EQ(prefilled->tokens.size(), 1u);
    EXPECT_EQ(prefilled->tokens[0], expected->tokens[0]);
    EXPECT_EQ(decoded->tokens, expected->tokens);
    EXPECT_EQ(decoded->logprobs, expected->logprobs);  // to the bit
    EXPECT_EQ(decoded->end->cached_tokens, request.prompt.size() - 1);
    EXPECT_EQ(exchange_.published(), 0u);
  }
  EXPECT_GT(exchange_.tokens_moved(), 0u);
  expect_clean(prefiller);
  expect_clean(decoder);
}

INSTANTIATE_TEST_SUITE_P(TensorParallel, SimDisaggregation,
                         ::testing::Values(Disaggregation{1, 1}, Disaggregation{2, 1}, Disaggregation{1, 2},
                                           Disaggregation{4, 2}, Disaggregation{2, 8}),
                         [](const auto& sizes) {
                           return std::to_string(sizes.param.prefill_tp) + "to" + std::to_string(sizes.param.decode_tp);
                         });

TEST_F(SimServing, ADecoderFetchesOnlyWhatItsPrefixCacheLacks) {
  TestServer prefiller(config_, 1, &exchange_, clock_);
  TestServer decoder(config_, 1, &exchange_, clock_);
  const std::string text = prompt(80);
  const auto run = [&](const std::string& whole, const std::string& id) {
    const GenerationRequest request = greedy_request(whole, 4);
    prefiller.submit(prefill_leg(request, id));
    const auto answer = decoder.submit(decode_leg(request, id));
    prefiller.run();
    decoder.run();
    exchange_.deliver();
    decoder.run();
    prefiller.run();
    return answer;
  };
  run(text, "a");
  const size_t before = exchange_.tokens_moved();
  EXPECT_EQ(before, 81u);
  const std::string longer = text + prompt(30);
  const auto answer = run(longer, "b");
  EXPECT_EQ(exchange_.tokens_moved() - before, 111u - 80u);
  TestServer single(config_, 1, nullptr, clock_);
  const auto expected = single.submit(greedy_request(longer, 4));
  single.run();
  EXPECT_EQ(answer->logprobs, expected->logprobs);
}

TEST_F(SimServing, AMissingBlockIsSeenInTheAnswer) {
  TestServer prefiller(config_, 1, &exchange_, clock_);
  TestServer decoder(config_, 1, &exchange_, clock_);
  TestServer single(config_, 1, nullptr, clock_);
  const GenerationRequest request = greedy_request(prompt(90), 10);
  const auto expected = single.submit(request);
  single.run();
  prefiller.submit(prefill_leg(request, "x"));
  const auto answer = decoder.submit(decode_leg(request, "x"));
  prefiller.run();
  decoder.run();
  exchange_.damage_block(4);
  exchange_.deliver();
  decoder.run();
  EXPECT_NE(answer->tokens, expected->tokens);
  EXPECT_NE(answer->logprobs[0], expected->logprobs[0]);
}

TEST_F(SimServing, AFailedLoadFailsTheRequestOrIsRecomputed) {
  TestServer prefiller(config_, 1, &exchange_, clock_);
  TestServer strict(config_, 1, &exchange_, clock_);
  TestServer lenient(config_, 1, &exchange_, clock_, {.scheduler = {}, .recompute_failed_loads = true});
  const GenerationRequest request = greedy_request(prompt(70), 6);
  exchange_.fail_fetches(true);
  for (TestServer* decoder : {&strict, &lenient}) {
    const std::string id = decoder == &strict ? "strict" : "lenient";
    prefiller.submit(prefill_leg(request, id));
    const auto answer = decoder->submit(decode_leg(request, id));
    prefiller.run();
    decoder->run();
    exchange_.deliver();
    decoder->run();
    prefiller.run();
    ASSERT_TRUE(answer->end.has_value());
    if (decoder == &strict) {
      EXPECT_EQ(answer->end->reason, FinishReason::error);
      EXPECT_EQ(answer->end->error->code, ErrorCode::peer_lost);
    } else {
      TestServer single(config_, 1, nullptr, clock_);
      const auto expected = single.submit(request);
      single.run();
      EXPECT_EQ(answer->logprobs, expected->logprobs);
    }
    expect_clean(*decoder);
  }
  expect_clean(prefiller);  // the reader told the owner that it is not coming
}

TEST_F(SimServing, ADecoderWhosePrefillerEndsWithoutKvHearsItAtOnce) {
  TestServer prefiller(config_, 1, &exchange_, clock_);
  TestServer decoder(config_, 1, &exchange_, clock_);
  GenerationRequest request = greedy_request(prompt(40), 6);
  GenerationRequest cut = prefill_leg(request, "stopped");
  TestServer single(config_, 1, nullptr, clock_);
  const auto first = single.submit(request);
  single.run();
  cut.sampling.stop_token_ids = {first->tokens[0]};  // its one token is a stop: as in vLLM, no KV is kept
  const auto prefilled = prefiller.submit(cut);
  const auto decoded = decoder.submit(decode_leg(request, "stopped"));
  prefiller.run();
  decoder.run();
  exchange_.deliver();
  decoder.run();
  EXPECT_EQ(prefilled->end->reason, FinishReason::stop);
  EXPECT_EQ(decoded->end->reason, FinishReason::error);
  EXPECT_EQ(decoded->end->error->code, ErrorCode::gone);
  expect_clean(prefiller);
  expect_clean(decoder);
}

TEST_F(SimServing, AnAbortWhileLoadingKeepsTheBlocksUntilTheFetchIsQuiet) {
  TestServer prefiller(config_, 1, &exchange_, clock_);
  TestServer decoder(config_, 1, &exchange_, clock_);
  const GenerationRequest request = greedy_request(prompt(70), 6);
  GenerationId id = 0;
  prefiller.submit(prefill_leg(request, "x"));
  const auto answer = decoder.submit(decode_leg(request, "x"), &id);
  prefiller.run();
  decoder.run();
  decoder.serving().abort(id);
  decoder.run();
  EXPECT_EQ(answer->end->reason, FinishReason::abort);
  EXPECT_EQ(decoder.stats().draining, 1u);
  EXPECT_GT(decoder.stats().blocks.used, 0u);
  exchange_.deliver();
  decoder.run();
  prefiller.run();
  expect_clean(decoder);
  expect_clean(prefiller);
}

TEST_F(SimServing, AbortsAtAnyStepLeaveNothingBehind) {
  for (size_t steps = 0; steps < 14; ++steps) {
    TestServer prefiller(config_, 1, &exchange_, clock_, {.scheduler = {.max_sequences = 4, .max_batched_tokens = 16}});
    TestServer decoder(config_, 2, &exchange_, clock_);
    const GenerationRequest request = greedy_request(prompt(90), 6);
    const std::string id = "abort-" + std::to_string(steps);
    GenerationId at_prefiller = 0;
    GenerationId at_decoder = 0;
    const auto prefilled = prefiller.submit(prefill_leg(request, id), &at_prefiller);
    const auto decoded = decoder.submit(decode_leg(request, id), &at_decoder);
    for (size_t i = 0; i < steps; ++i) {
      prefiller.serving().step_on_loop();
      decoder.serving().step_on_loop();
      exchange_.deliver();
    }
    prefiller.serving().abort(at_prefiller);
    decoder.serving().abort(at_decoder);
    for (size_t i = 0; i < 3; ++i) {
      prefiller.run();
      decoder.run();
      exchange_.deliver();
    }
    EXPECT_TRUE(prefilled->end.has_value() && decoded->end.has_value()) << steps;
    prefiller.run();
    decoder.run();
    expect_clean(prefiller);
    expect_clean(decoder);
    EXPECT_EQ(exchange_.published() + exchange_.fetches(), 0u) << steps;
  }
}

TEST_F(SimServing, AnEndedLeaseGivesTheBlocksBackAndTheReaderGetsGone) {
  TestServer prefiller(config_, 1, &exchange_, clock_);
  TestServer decoder(config_, 1, &exchange_, clock_);
  const GenerationRequest request = greedy_request(prompt(70), 6);
  prefiller.submit(prefill_leg(request, "x"));
  prefiller.run();
  EXPECT_EQ(prefiller.stats().held_blocks, 9u);
  exchange_.expire_all();
  prefiller.run();
  expect_clean(prefiller);
  const auto answer = decoder.submit(decode_leg(request, "x"));
  decoder.run();
  exchange_.deliver();
  decoder.run();
  EXPECT_EQ(answer->end->error->code, ErrorCode::gone);
}

TEST_F(SimServing, ADeadlineEndsARequestInEveryState) {
  TestServer server(config_, 1, &exchange_, clock_, {.scheduler = {.max_sequences = 2, .max_batched_tokens = 8}});
  const auto with_deadline = [&](GenerationRequest request) {
    request.deadline = clock_.now() + std::chrono::seconds(5);
    return request;
  };
  const auto running = server.submit(with_deadline(greedy_request(prompt(90), 50)));
  const auto loading = server.submit(with_deadline(decode_leg(greedy_request(prompt(30), 5), "never")));
  const auto waiting = server.submit(with_deadline(greedy_request(prompt(30), 5)));
  for (size_t i = 0; i < 5; ++i) server.serving().step_on_loop();
  EXPECT_EQ(server.stats().running, 1u);
  EXPECT_EQ(server.stats().loading, 1u);
  EXPECT_EQ(server.stats().waiting, 1u);
  clock_.advance(std::chrono::seconds(6));
  server.run();
  for (const auto& answer : {running, loading, waiting}) {
    ASSERT_TRUE(answer->end.has_value());
    EXPECT_EQ(answer->end->error->code, ErrorCode::deadline_exceeded);
  }
  exchange_.deliver();
  server.run();
  expect_clean(server);
}

TEST_F(SimServing, StopStringsStopTokensAndMinTokensEndAnswersWhereTheyShould) {
  TestServer server(config_, 1, nullptr, clock_);
  const GenerationRequest request = greedy_request(prompt(60), 24);
  const auto free_run = server.submit(request);
  server.run();
  GenerationRequest stopped = request;
  stopped.sampling.stop = {free_run->text.substr(10, 3)};
  const size_t first = free_run->text.find(stopped.sampling.stop[0]);
  const auto text_stop = server.submit(stopped);
  GenerationRequest by_token = request;
  by_token.sampling.stop_token_ids = {free_run->tokens[5]};
  const auto token_stop = server.submit(by_token);
  by_token.sampling.min_tokens = 9;
  const auto late_stop = server.submit(by_token);
  GenerationRequest late_text = stopped;
  late_text.sampling.min_tokens = 15;
  const auto late_text_stop = server.submit(late_text);
  server.run();
  EXPECT_GE(late_text_stop->tokens.size(), 15u);
  EXPECT_EQ(text_stop->text, free_run->text.substr(0, first));
  EXPECT_EQ(text_stop->end->reason, FinishReason::stop);
  const auto at = std::ranges::find(free_run->tokens, free_run->tokens[5]) - free_run->tokens.begin();
  EXPECT_EQ(token_stop->tokens.size(), static_cast<size_t>(at) + 1);
  EXPECT_GE(late_stop->tokens.size(), 9u);
}

TEST_F(SimServing, RefusesWhatItCanNeverServeWithACause) {
  TestServer server(config_, 1, nullptr, clock_);
  const auto too_long = server.submit(greedy_request(prompt(510), 10));
  const auto empty = server.submit(GenerationRequest{});
  const auto no_transfer = server.submit(decode_leg(greedy_request("hello", 3), "x"));
  server.run();
  EXPECT_EQ(too_long->end->error->code, ErrorCode::invalid_argument);
  EXPECT_THAT(too_long->end->error->message, ::testing::HasSubstr("maximum context length is 512"));
  EXPECT_EQ(empty->end->error->code, ErrorCode::invalid_argument);
  EXPECT_EQ(no_transfer->end->error->code, ErrorCode::unsupported);
  expect_clean(server);
}

}  // namespace
}  // namespace kvferry::sim
