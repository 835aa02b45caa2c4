#include "sim/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "common/check.h"
#include "common/random.h"
#include "sim/tokenizer.h"

namespace kvferry::sim {
namespace {

constexpr double kGreedyBelow = 1e-5;

bool is_stop(Token token, const SamplingParams& params) {
  if (token == kEnd && !params.ignore_eos) return true;
  return std::ranges::find(params.stop_token_ids, token) != params.stop_token_ids.end();
}

// Tokens by falling logit; among equals the smaller token first.
std::vector<Token> ranking(std::span<const float> logits, size_t count) {
  std::vector<Token> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  count = std::min(count, order.size());
  const auto before = [&](Token a, Token b) {
    const float left = logits[static_cast<size_t>(a)];
    const float right = logits[static_cast<size_t>(b)];
    return left != right ? left > right : a < b;
  };
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(), before);
  order.resize(count);
  return order;
}

double log_sum(std::span<const float> logits) {
  const double largest = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  return largest + std::log(sum);
}

Token draw(std::span<const float> logits, const SamplingParams& params, size_t index) {
  const std::vector<Token> order = ranking(logits, logits.size());
  const double largest = logits[static_cast<size_t>(order[0])];
  std::vector<double> weights;
  for (const Token token : order) {
    weights.push_back(std::exp((logits[static_cast<size_t>(token)] - largest) / params.temperature));
  }
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  size_t kept = 0;  // the fewest tokens that have top_p of the probability
  double mass = 0;
  while (kept < weights.size() && (kept == 0 || mass < params.top_p * total)) mass += weights[kept++];
  SeededRandom random(SeededRandom(params.seed).next() ^ index);
  double point = static_cast<double>(random.next() >> 11) * 0x1p-53 * mass;
  for (size_t i = 0; i < kept; ++i) {
    if (point < weights[i]) return order[i];
    point -= weights[i];
  }
  return order[0];
}

}  // namespace

SampledToken sample(std::span<const float> logits, const SamplingParams& params, size_t index) {
  KVF_CHECK(logits.size() == kVocabulary);
  std::vector<float> allowed(logits.begin(), logits.end());
  if (index + 1 < params.min_tokens) {
    for (size_t t = 0; t < allowed.size(); ++t) {
      if (is_stop(static_cast<Token>(t), params)) allowed[t] = -std::numeric_limits<float>::infinity();
    }
  }
  SampledToken sampled;
  sampled.token = params.temperature < kGreedyBelow ? ranking(allowed, 1)[0] : draw(allowed, params, index);
  if (!params.logprobs) return sampled;
  const double normal = log_sum(logits);
  const auto logprob = [&](Token t) { return static_cast<float>(logits[static_cast<size_t>(t)] - normal); };
  sampled.logprob = logprob(sampled.token);
  for (const Token t : ranking(logits, *params.logprobs)) sampled.top.push_back({t, logprob(t)});
  return sampled;
}

bool ends_answer(Token token, const SamplingParams& params, size_t index) {
  return index + 1 >= params.min_tokens && is_stop(token, params);
}

}  // namespace kvferry::sim
