#include <gtest/gtest.h>

#include <bit>
#include <chrono>
#include <cstring>

#include "sim/block_allocator.h"
#include "sim/model.h"
#include "test/support/sanitized.h"
#include "test/support/sim_support.h"

namespace kvferry::sim {
namespace {

std::vector<Token> random_prompt(Random& random, size_t bytes) {
  return encode(random_text(random, bytes));
}

// Copies the pages of some blocks onto others, within one model.
void copy_blocks(Model& model, std::span<const BlockId> from, std::span<const BlockId> to) {
  for (size_t rank = 0; rank < model.tp(); ++rank) {
    const KvCacheView& cache = model.kv_cache(rank);
    for (size_t layer = 0; layer < cache.layers; ++layer) {
      for (size_t i = 0; i < from.size(); ++i) {
        std::memcpy(cache.page(layer, to[i], 0), cache.page(layer, from[i], 0), cache.block_stride);
      }
    }
  }
}

TEST(SimModel, LogitsAreBitEqualForEveryTensorParallelSize) {
  SeededRandom random(7);
  const std::vector<Token> prompt = random_prompt(random, 200);
  const std::vector<BlockId> blocks = blocks_from(3, 32);
  const auto solo = make_model(small_config(), 1);
  const std::vector<float> expected = run_tokens(*solo, prompt, blocks);
  for (const size_t tp : {2u, 4u, 8u}) {
    const auto model = make_model(small_config(), tp);
    EXPECT_EQ(run_tokens(*model, prompt, blocks), expected) << "tp " << tp;
    EXPECT_EQ(run_greedy(*model, prompt, blocks, 0, 6), run_greedy(*solo, prompt, blocks, 0, 6)) << "tp " << tp;
  }
}

TEST(SimModel, LogitsAreBitEqualForEveryPrefillChunkAndBlockTable) {
  SeededRandom random(8);
  const std::vector<Token> prompt = random_prompt(random, 150);
  const auto model = make_model(small_config(), 2);
  const std::vector<float> expected = run_tokens(*model, prompt, blocks_from(0, 20));
  std::vector<BlockId> scattered = blocks_from(30, 20);
  std::reverse(scattered.begin(), scattered.end());
  for (const size_t chunk : {1u, 3u, 8u, 64u, 149u}) {
    EXPECT_EQ(run_tokens(*model, prompt, scattered, 0, chunk), expected) << "chunk " << chunk;
  }
}

TEST(SimModel, LogitsAreBitEqualWhateverElseIsInTheBatch) {
  SeededRandom random(9);
  const auto model = make_model(small_config(), 2);
  std::vector<std::vector<Token>> prompts;
  std::vector<std::vector<BlockId>> tables;
  std::vector<std::vector<float>> alone;
  for (size_t i = 0; i < 5; ++i) {
    prompts.push_back(random_prompt(random, 20 + 17 * i));
    tables.push_back(blocks_from(static_cast<BlockId>(20 * i), 12));
    alone.push_back(run_tokens(*model, prompts[i], tables[i]));
  }
  // Again together: some whole, some from the middle, one a single decode token, two without logits.
  std::vector<SequenceChunk> batch;
  const size_t from[] = {0, 36, 10, 0, 53};
  for (size_t i = 0; i < 5; ++i) {
    batch.push_back({.tokens = std::span<const Token>(prompts[i]).subspan(from[i]),
                     .first_position = from[i],
                     .blocks = tables[i],
                     .wants_logits = i % 2 == 0});
  }
  std::vector<float> logits;
  ASSERT_TRUE(model->forward(batch, logits).ok());
  ASSERT_EQ(logits.size(), 3 * kVocabulary);
  for (size_t i = 0; i < 3; ++i) {
    const std::vector<float> row(logits.begin() + static_cast<std::ptrdiff_t>(i * kVocabulary),
                                 logits.begin() + static_cast<std::ptrdiff_t>((i + 1) * kVocabulary));
    EXPECT_EQ(row, alone[2 * i]);
  }
}

// The reason why this model may stand in for a real one: it answers from the KV cache.
TEST(SimModel, TheKvOfAnotherPromptChangesTheFirstTokenForNearlyAllPrompts) {
  SeededRandom random(10);
  const auto model = make_model(ModelConfig{}, 1, 64);
  const std::vector<BlockId> own = blocks_from(0, 20);
  const std::vector<BlockId> other = blocks_from(20, 20);
  size_t changed = 0;
  constexpr size_t kPairs = test::kSanitized ? 10 : 40;
  for (size_t i = 0; i < kPairs; ++i) {
    const size_t length = 40 + random.below(200);
    std::vector<Token> left = random_prompt(random, length);
    std::vector<Token> right = random_prompt(random, length);
    left.back() = right.back() = 'e';
    const Token expected = argmax(run_tokens(*model, left, own));
    run_tokens(*model, right, other);
    if (argmax(run_tokens(*model, left, other, left.size() - 1)) != expected) ++changed;
  }
  RecordProperty("changed", static_cast<int>(changed));
  EXPECT_GE(changed, kPairs * 95 / 100);
}

TEST(SimModel, OneWrongBlockChangesTheAnswer) {
  SeededRandom random(11);
  const auto model = make_model(ModelConfig{}, 1, 64);
  const std::vector<BlockId> own = blocks_from(0, 20);
  const std::vector<BlockId> other = blocks_from(20, 20);
  size_t changed = 0;
  constexpr size_t kPrompts = test::kSanitized ? 2 : 10;
  for (size_t i = 0; i < kPrompts; ++i) {
    const std::vector<Token> prompt = random_prompt(random, 220);
    const std::vector<Token> expected = run_greedy(*model, prompt, own, 0, 16);
    run_tokens(*model, random_prompt(random, 220), other);
    run_tokens(*model, prompt, own);
    const size_t wrong = random.below(prompt.size() / model->config().block_size);
    copy_blocks(*model, std::span(other).subspan(wrong, 1), std::span(own).subspan(wrong, 1));
    if (run_greedy(*model, prompt, own, prompt.size() - 1, 16) != expected) ++changed;
  }
  RecordProperty("changed", static_cast<int>(changed));
  EXPECT_EQ(changed, kPrompts);
}

TEST(SimModel, TheNextTokenIsRecomputedFromCopiedBlocksWithTheSameBits) {
  SeededRandom random(12);
  const std::vector<Token> prompt = random_prompt(random, 100);
  const auto model = make_model(small_config(), 2);
  const std::vector<float> expected = run_tokens(*model, prompt, blocks_from(0, 13));
  copy_blocks(*model, blocks_from(0, 13), blocks_from(40, 13));
  EXPECT_EQ(run_tokens(*model, prompt, blocks_from(40, 13), prompt.size() - 1), expected);
}

// A change of weights or arithmetic makes another model of the same name: it must be on purpose, and it changes
// ModelConfig::fingerprint() with it. Compilers and build types must not.
TEST(SimModel, TheSameSeedIsTheSameModelForEver) {
  const std::vector<Token> prompt = encode("The quick brown fox");
  const auto model = make_model(ModelConfig{}, 1, 8);
  ChainHash bits = 0;
  for (const float logit : run_tokens(*model, prompt, blocks_from(0, 4))) {
    const Token word = std::bit_cast<int32_t>(logit);
    bits = chain_hash(bits, {&word, 1});
  }
  EXPECT_EQ(bits, 6358436022395264740u);
  std::string answer;
  for (const Token token : run_greedy(*model, prompt, blocks_from(0, 4), 0, 12)) answer += token_bytes(token);
  EXPECT_EQ(answer, "ooG]o|.|n^q]");
}

TEST(SimModel, RefusesShapesThatCannotBeShared) {
  EXPECT_FALSE(Model::create(small_config(), 3, 8).ok());
  EXPECT_FALSE(Model::create(small_config(), 0, 8).ok());
  EXPECT_FALSE(Model::create(small_config(), 16, 8).ok());
  ModelConfig odd = small_config();
  odd.query_heads = 12;
  EXPECT_FALSE(Model::create(odd, 1, 8).ok());
  EXPECT_FALSE(Model::create(small_config(), 1, 0).ok());
}

TEST(SimModel, FiveHundredTokensPrefillInWellUnderASecond) {
  SeededRandom random(13);
  const auto model = make_model(ModelConfig{}, 1, 64);
  const std::vector<Token> prompt = random_prompt(random, 500);
  double best = 1e9;
  for (int i = 0; i < 5 && best >= 10; ++i) {  // the machine may stand still in any
    const auto start = std::chrono::steady_clock::now();
    run_tokens(*model, prompt, blocks_from(0, 40), 0, 256);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  RecordProperty("milliseconds", static_cast<int>(best * 1e3));
  EXPECT_LT(best, 10.0);  // generous: sanitizers and a busy machine; the figure is for the reader
}

}  // namespace
}  // namespace kvferry::sim
