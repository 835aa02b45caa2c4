#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "common/check.h"
#include "common/random.h"
#include "sim/model.h"
#include "sim/tokenizer.h"

namespace kvferry::sim {

inline std::unique_ptr<Model> make_model(const ModelConfig& config, size_t tp, size_t blocks = 128) {
  auto model = Model::create(config, tp, blocks);
  KVF_CHECK(model.ok());
  return std::move(model).value();
}

// A model that is quick even under a sanitizer.
inline ModelConfig small_config() {
  return ModelConfig{.layers = 3, .head_dim = 16, .mlp = 128, .block_size = 8, .max_model_len = 512};
}

// English-like bytes: words of a small vocabulary, so that prompts resemble each other as real ones do.
inline std::string random_text(Random& random, size_t bytes) {
  static constexpr std::string_view kWords[] = {"the ", "cache ",  "of ",   "a ",     "prompt ", "moves ", "and ",
                                                "to ",  "server ", "that ", "which ", "is ",     "fast ",  "tokens ",
                                                "in ",  "block ",  "new ",  "while ", "reads ",  "it "};
  std::string text;
  while (text.size() < bytes) text += kWords[random.below(std::size(kWords))];
  text.resize(bytes);
  return text;
}

inline std::vector<BlockId> blocks_from(BlockId first, size_t count) {
  std::vector<BlockId> blocks;
  for (size_t i = 0; i < count; ++i) blocks.push_back(first + static_cast<BlockId>(i));
  return blocks;
}

inline Token argmax(std::span<const float> logits) {
  return static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Runs tokens[from..] of a sequence in chunks of `chunk` and returns the logits of the last token.
inline std::vector<float> run_tokens(Model& model, std::span<const Token> tokens, std::span<const BlockId> blocks,
                                     size_t from = 0, size_t chunk = 4096) {
  std::vector<float> logits;
  for (size_t at = from; at < tokens.size(); at += chunk) {
    const SequenceChunk piece{.tokens = tokens.subspan(at, std::min(chunk, tokens.size() - at)),
                              .first_position = at,
                              .blocks = blocks,
                              .wants_logits = true};
    KVF_CHECK(model.forward({&piece, 1}, logits).ok());
  }
  return logits;
}

// Greedy tokens that follow a prompt whose KV up to `computed` tokens is in the cache.
inline std::vector<Token> run_greedy(Model& model, std::vector<Token> tokens, std::span<const BlockId> blocks,
                                     size_t computed, size_t count) {
  std::vector<Token> answer;
  for (size_t i = 0; i < count; ++i) {
    answer.push_back(argmax(run_tokens(model, tokens, blocks, computed)));
    computed = tokens.size();
    tokens.push_back(answer.back());
  }
  return answer;
}

}  // namespace kvferry::sim
