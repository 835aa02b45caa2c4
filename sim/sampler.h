#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sim/model_config.h"

namespace kvferry::sim {

struct SamplingParams {
  double temperature = 1.0;  // 0: greedy
  double top_p = 1.0;
  uint64_t seed = 0;  // with the index of the token, all that its draw depends on
  size_t max_tokens = 16;
  size_t min_tokens = 0;  // neither the end token nor a stop ends the answer before
  bool ignore_eos = false;
  std::vector<Token> stop_token_ids = {};
  std::vector<std::string> stop = {};
  std::optional<size_t> logprobs = {};  // how many alternatives to report; 0 is the chosen token alone
};

struct TokenLogprob {
  Token token = 0;
  float logprob = 0;
};

struct SampledToken {
  Token token = 0;
  float logprob = 0;
  std::vector<TokenLogprob> top = {};  // the most likely tokens, most likely first, if asked for
};

constexpr size_t kMaxLogprobs = 20;

// Chooses the `index`-th token of an answer from one row of logits. Log-probabilities are the model's, before
// temperature and top_p. Pure.
SampledToken sample(std::span<const float> logits, const SamplingParams& params, size_t index);

// Whether this token, as the `index`-th of an answer, ends it.
bool ends_answer(Token token, const SamplingParams& params, size_t index);

}  // namespace kvferry::sim
