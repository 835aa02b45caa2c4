#include "sim/weights.h"

#include <cmath>

#include "common/random.h"
#include "sim/tokenizer.h"

namespace kvferry::sim {
namespace {

// Gains, chosen so that the answer hangs on the KV cache and nothing else: queries sharp enough that heads pick out
// single tokens (differently sharp by head), positions that tell the same word in two places apart, and residual
// additions several times the size of the last token's own embedding. Two prompts that end alike then share their next
// token in about 2 of 100 cases (chance alone: 1 of 97); test/unit/sim_model_test.cc watches over it.
constexpr double kSharpness[] = {3.0, 4.0, 6.0, 8.0};
constexpr double kPositionGain = 2.0;
constexpr double kAttentionGain = 4.0;
constexpr double kMlpGain = 6.0;
constexpr double kLogitGain = 3.0;
constexpr float kNotOffered = -60.0f;
constexpr double kRopeBase = 10000.0;

enum class Tensor : uint64_t { embedding = 1, position, query, key, value, output, gate, up, down, head };

// Uniform numbers of a given standard deviation; +, * and sqrt only, so the same on every machine.
class Draw {
 public:
  Draw(uint64_t seed, Tensor tensor, size_t layer, size_t index, double deviation)
      : random_(SeededRandom(SeededRandom(seed).next() ^ (static_cast<uint64_t>(tensor) << 48) ^ (layer << 24) ^ index)
                    .next()),
        scale_(std::sqrt(3.0) * deviation) {}

  float next() {
    const double unit = static_cast<double>(random_.next() >> 11) * 0x1p-53;
    return static_cast<float>((2.0 * unit - 1.0) * scale_);
  }
  PackedMatrix matrix(size_t inputs, size_t outputs) {
    PackedMatrix matrix(inputs, outputs);
    for (size_t i = 0; i < inputs; ++i) {
      for (size_t o = 0; o < outputs; ++o) matrix.at(i, o) = next();
    }
    return matrix;
  }

 private:
  SeededRandom random_;
  double scale_;
};

double one_over_root(size_t inputs) {
  return 1.0 / std::sqrt(static_cast<double>(inputs));
}

SliceWeights draw_slice(const ModelConfig& config, size_t layer, size_t slice) {
  const size_t width = config.heads_per_slice() * config.head_dim;
  const double in = one_over_root(config.hidden());
  const double sharp = kSharpness[slice % std::size(kSharpness)];
  const auto draw = [&](Tensor tensor, double deviation) { return Draw(config.seed, tensor, layer, slice, deviation); };
  SliceWeights weights;
  weights.query = draw(Tensor::query, in * sharp).matrix(config.hidden(), width);
  weights.output = draw(Tensor::output, in * kAttentionGain).matrix(width, config.hidden());
  weights.gate = draw(Tensor::gate, in).matrix(config.hidden(), config.mlp_per_slice());
  weights.up = draw(Tensor::up, in).matrix(config.hidden(), config.mlp_per_slice());
  weights.down =
      draw(Tensor::down, one_over_root(config.mlp) * kMlpGain).matrix(config.mlp_per_slice(), config.hidden());
  return weights;
}

LayerWeights draw_layer(const ModelConfig& config, const RankShare& share, size_t layer) {
  LayerWeights weights;
  for (size_t i = 0; i < share.slices; ++i) weights.slices.push_back(draw_slice(config, layer, share.first_slice + i));
  const double in = one_over_root(config.hidden());
  for (size_t i = 0; i < share.kv_heads; ++i) {
    const size_t head = share.first_kv_head + i;
    weights.key.push_back(Draw(config.seed, Tensor::key, layer, head, in).matrix(config.hidden(), config.head_dim));
    weights.value.push_back(Draw(config.seed, Tensor::value, layer, head, in).matrix(config.hidden(), config.head_dim));
  }
  return weights;
}

void fill_rotations(const ModelConfig& config, RankWeights& weights) {
  const size_t half = config.head_dim / 2;
  weights.cosines.resize(config.max_model_len * half);
  weights.sines.resize(config.max_model_len * half);
  for (size_t i = 0; i < half; ++i) {
    const double rate = std::pow(kRopeBase, -static_cast<double>(i) / static_cast<double>(half));
    for (size_t position = 0; position < config.max_model_len; ++position) {
      const double angle = static_cast<double>(position) * rate;
      weights.cosines[position * half + i] = static_cast<float>(std::cos(angle));
      weights.sines[position * half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

}  // namespace

RankWeights RankWeights::create(const ModelConfig& config, const RankShare& share) {
  RankWeights weights;
  Draw embedding(config.seed, Tensor::embedding, 0, 0, 1.0);
  weights.embedding.resize(kVocabulary * config.hidden());
  for (float& x : weights.embedding) x = embedding.next();
  Draw position(config.seed, Tensor::position, 0, 0, kPositionGain);
  weights.position.resize(config.max_model_len * config.hidden());
  for (float& x : weights.position) x = position.next();
  for (size_t layer = 0; layer < config.layers; ++layer) weights.layers.push_back(draw_layer(config, share, layer));
  weights.head = Draw(config.seed, Tensor::head, 0, 0, one_over_root(config.hidden()) * kLogitGain)
                     .matrix(config.hidden(), kVocabulary);
  for (size_t t = 0; t < kVocabulary; ++t) {
    weights.head_bias.push_back(is_offered(static_cast<Token>(t)) ? 0.0f : kNotOffered);
  }
  fill_rotations(config, weights);
  return weights;
}

}  // namespace kvferry::sim
