#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "common/random.h"
#include "sim/sampler.h"
#include "sim/text_assembler.h"
#include "sim/tokenizer.h"

namespace kvferry::sim {
namespace {

std::vector<float> peaks(const std::map<Token, float>& values) {
  std::vector<float> logits(kVocabulary, -50.0f);
  for (const auto& [token, logit] : values) logits[static_cast<size_t>(token)] = logit;
  return logits;
}

TEST(SimSampler, GreedyTakesTheLargestAndAmongEqualsTheFirst) {
  EXPECT_EQ(sample(peaks({{'a', 1}, {'b', 3}, {'c', 2}}), {.temperature = 0}, 0).token, 'b');
  EXPECT_EQ(sample(peaks({{'x', 3}, {'b', 3}}), {.temperature = 0}, 0).token, 'b');
}

TEST(SimSampler, DrawsFollowTheProbabilitiesAndDependOnSeedAndIndexAlone) {
  const std::vector<float> logits = peaks({{'a', std::log(0.6f)}, {'b', std::log(0.3f)}, {'c', std::log(0.1f)}});
  std::map<Token, size_t> seen;
  constexpr size_t kDraws = 6000;
  for (size_t i = 0; i < kDraws; ++i) {
    const Token token = sample(logits, {.seed = 5}, i).token;
    EXPECT_EQ(sample(logits, {.seed = 5}, i).token, token);
    ++seen[token];
  }
  EXPECT_NEAR(static_cast<double>(seen['a']) / kDraws, 0.6, 0.03);
  EXPECT_NEAR(static_cast<double>(seen['b']) / kDraws, 0.3, 0.03);
  EXPECT_NEAR(static_cast<double>(seen['c']) / kDraws, 0.1, 0.02);
}

TEST(SimSampler, TopPCutsTheTailAndTemperatureSharpens) {
  const std::vector<float> logits = peaks({{'a', std::log(0.6f)}, {'b', std::log(0.3f)}, {'c', std::log(0.1f)}});
  size_t sharp_a = 0;
  for (size_t i = 0; i < 2000; ++i) {
    EXPECT_NE(sample(logits, {.top_p = 0.85}, i).token, 'c');
    EXPECT_EQ(sample(logits, {.top_p = 0.5}, i).token, 'a');
    if (sample(logits, {.temperature = 0.25}, i).token == 'a') ++sharp_a;
  }
  EXPECT_GT(sharp_a, 1800u);  // 0.6^4 : 0.3^4 : 0.1^4
}

TEST(SimSampler, LogprobsAreTheModelsAndSorted) {
  const std::vector<float> logits = peaks({{'a', std::log(0.6f)}, {'b', std::log(0.3f)}, {'c', std::log(0.1f)}});
  const SampledToken sampled = sample(logits, {.temperature = 0, .logprobs = 2}, 0);
  EXPECT_NEAR(sampled.logprob, std::log(0.6), 1e-5);
  ASSERT_EQ(sampled.top.size(), 2u);
  EXPECT_EQ(sampled.top[1].token, 'b');
  EXPECT_NEAR(sampled.top[1].logprob, std::log(0.3), 1e-5);
}

TEST(SimSampler, NoStopTokenComesBeforeMinTokens) {
  const std::vector<float> logits = peaks({{kEnd, 9}, {'q', 8}, {'a', 1}});
  const SamplingParams params{.temperature = 0, .min_tokens = 3, .stop_token_ids = {'q'}};
  EXPECT_EQ(sample(logits, params, 0).token, 'a');
  EXPECT_EQ(sample(logits, params, 1).token, 'a');
  EXPECT_EQ(sample(logits, params, 2).token, kEnd);
  EXPECT_TRUE(ends_answer(kEnd, params, 2));
  EXPECT_TRUE(ends_answer('q', params, 5));
  EXPECT_FALSE(ends_answer('q', params, 1));
  EXPECT_FALSE(ends_answer(kEnd, {.ignore_eos = true}, 5));
}

TEST(SimText, StopStringsAreFoundAcrossPiecesAndCutOff) {
  TextAssembler text({"END", "xyz"});
  EXPECT_EQ(text.add("abcE"), "abc");
  EXPECT_EQ(text.add("N"), "");
  EXPECT_EQ(text.add("x"), "EN");  // was no stop after all; x may begin one
  EXPECT_EQ(text.add("EN"), "x");
  EXPECT_EQ(text.add("D and more"), "");
  EXPECT_TRUE(text.stopped());
  EXPECT_EQ(text.finish(), "");
}

TEST(SimText, TheEarliestStopWinsAndTheRestComesAtTheEnd) {
  TextAssembler both({"cd", "b"});
  EXPECT_EQ(both.add("abcd"), "a");
  TextAssembler unfinished({"stop"});
  EXPECT_EQ(unfinished.add("well sto"), "well ");
  EXPECT_EQ(unfinished.finish(), "sto");
}

TEST(SimText, CharactersComeWholeAndBrokenOnesBecomeReplacements) {
  TextAssembler text;
  EXPECT_EQ(text.add("\xe2\x82"), "");
  EXPECT_EQ(text.add("\xac!"), "\xe2\x82\xac!");
  EXPECT_EQ(text.add("\xff\xc0z"), "\xef\xbf\xbd\xef\xbf\xbdz");
  EXPECT_EQ(text.add("\xed\xa0\x80"), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");  // a surrogate is no character
  EXPECT_EQ(text.add("\xf0\x9f"), "");
  EXPECT_EQ(text.finish(), "\xef\xbf\xbd");
}

TEST(SimText, ManyPiecesGiveTheSameTextAsOne) {
  SeededRandom random(2);
  for (size_t round = 0; round < 300; ++round) {
    std::string bytes;
    const char kBytes[] = {'a', 'b', '\xe2', '\x82', '\xac', '\xf0', '\x9f', '\x98', '\x80', '\xff'};
    for (size_t i = 0; i < 30; ++i) bytes += kBytes[random.below(std::size(kBytes))];
    TextAssembler one({"ab\xe2\x82\xac", "ba"});
    TextAssembler many({"ab\xe2\x82\xac", "ba"});
    std::string whole = one.add(bytes);
    whole += one.finish();
    std::string pieces;
    for (const char c : bytes) pieces += many.add(std::string_view(&c, 1));
    pieces += many.finish();
    EXPECT_EQ(pieces, whole);
    EXPECT_EQ(many.stopped(), one.stopped());
  }
}

TEST(SimTokenizer, BytesAndRolesRoundTrip) {
  EXPECT_EQ(encode("hi"), (std::vector<Token>{kBegin, 'h', 'i'}));
  EXPECT_EQ(encode_chat({{"system", "s"}, {"user", "u"}}),
            (std::vector<Token>{kBegin, kSystem, 's', kTurnEnd, kUser, 'u', kTurnEnd, kAssistant}));
  for (Token token = 0; token < 256; ++token) {
    ASSERT_EQ(token_bytes(token).size(), 1u);
    EXPECT_EQ(static_cast<unsigned char>(token_bytes(token)[0]), token);
  }
  EXPECT_EQ(token_bytes(kEnd), "");
  EXPECT_EQ(token_name(0xe2), "<0xE2>");
}

}  // namespace
}  // namespace kvferry::sim
