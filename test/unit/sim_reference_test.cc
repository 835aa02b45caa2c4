// The transformer once more, as a textbook would write it: double precision, whole sequences, no pages, no slices, no
// ranks. Only the weights are shared with the product.

#include <gtest/gtest.h>

#include <cmath>

#include "sim/weights.h"
#include "test/support/sim_support.h"

namespace kvferry::sim {
namespace {

using Vector = std::vector<double>;

Vector multiply(const Vector& x, const PackedMatrix& matrix) {
  Vector out(matrix.outputs(), 0.0);
  for (size_t o = 0; o < matrix.outputs(); ++o) {
    for (size_t i = 0; i < matrix.inputs(); ++i) out[o] += x[i] * double{matrix.at(i, o)};
  }
  return out;
}

Vector normalised(const Vector& x) {
  double squares = 0;
  for (const double value : x) squares += value * value;
  Vector out = x;
  for (double& value : out) value /= std::sqrt(squares / static_cast<double>(x.size()));
  return out;
}

// RoPE by complex numbers' definition, on pairs (i, i + half).
Vector rotated(const Vector& x, size_t position) {
  const size_t half = x.size() / 2;
  Vector out(x.size());
  for (size_t i = 0; i < half; ++i) {
    const double angle =
        static_cast<double>(position) / std::pow(10000.0, static_cast<double>(i) / static_cast<double>(half));
    out[i] = x[i] * std::cos(angle) - x[half + i] * std::sin(angle);
    out[half + i] = x[i] * std::sin(angle) + x[half + i] * std::cos(angle);
  }
  return out;
}

class Reference {
 public:
  explicit Reference(const ModelConfig& config)
      : config_(config), weights_(RankWeights::create(config, RankShare::create(config, 0, 1).value())) {}

  Vector logits(const std::vector<Token>& tokens) const {
    std::vector<Vector> x(tokens.size(), Vector(config_.hidden()));
    for (size_t t = 0; t < tokens.size(); ++t) {
      for (size_t i = 0; i < config_.hidden(); ++i) {
        x[t][i] = double{weights_.embedding[static_cast<size_t>(tokens[t]) * config_.hidden() + i]} +
                  double{weights_.position[t * config_.hidden() + i]};
      }
    }
    for (const LayerWeights& layer : weights_.layers) {
      attention(layer, x);
      mlp(layer, x);
    }
    Vector out = multiply(normalised(x.back()), weights_.head);
    for (size_t t = 0; t < out.size(); ++t) out[t] += double{weights_.head_bias[t]};
    return out;
  }

 private:
  void attention(const LayerWeights& layer, std::vector<Vector>& x) const {
    std::vector<Vector> added(x.size(), Vector(config_.hidden(), 0.0));
    for (size_t head = 0; head < config_.query_heads; ++head) {
      const size_t slice = head / config_.heads_per_slice();
      const size_t within = head % config_.heads_per_slice() * config_.head_dim;
      const size_t kv = head * config_.kv_heads / config_.query_heads;
      std::vector<Vector> keys;
      std::vector<Vector> values;
      for (size_t t = 0; t < x.size(); ++t) {
        keys.push_back(rotated(multiply(normalised(x[t]), layer.key[kv]), t));
        values.push_back(multiply(normalised(x[t]), layer.value[kv]));
        const Vector queries = multiply(normalised(x[t]), layer.slices[slice].query);
        const Vector query = rotated(Vector(queries.begin() + static_cast<std::ptrdiff_t>(within),
                                            queries.begin() + static_cast<std::ptrdiff_t>(within + config_.head_dim)),
                                     t);
        const Vector found = normalised(softmax_mean(query, keys, values));
        for (size_t o = 0; o < config_.hidden(); ++o) {
          for (size_t d = 0; d < config_.head_dim; ++d) {
            added[t][o] += found[d] * double{layer.slices[slice].output.at(within + d, o)};
          }
        }
      }
    }
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t i = 0; i < config_.hidden(); ++i) x[t][i] += added[t][i];
    }
  }

  static Vector softmax_mean(const Vector& query, const std::vector<Vector>& keys, const std::vector<Vector>& values) {
    Vector mean(query.size(), 0.0);
    double total = 0;
    for (size_t p = 0; p < keys.size(); ++p) {
      double score = 0;
      for (size_t d = 0; d < query.size(); ++d) score += query[d] * keys[p][d];
      const double weight = std::exp(score / std::sqrt(static_cast<double>(query.size())));
      total += weight;
      for (size_t d = 0; d < query.size(); ++d) mean[d] += weight * values[p][d];
    }
    for (double& value : mean) value /= total;
    return mean;
  }

  void mlp(const LayerWeights& layer, std::vector<Vector>& x) const {
    for (Vector& row : x) {
      const Vector in = normalised(row);
      for (const SliceWeights& slice : layer.slices) {
        Vector gate = multiply(in, slice.gate);
        const Vector up = multiply(in, slice.up);
        for (size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1.0 + std::exp(-gate[i]));
        const Vector down = multiply(gate, slice.down);
        for (size_t i = 0; i < row.size(); ++i) row[i] += down[i];
      }
    }
  }

  const ModelConfig config_;
  const RankWeights weights_;
};

void expect_reference_logits(const ModelConfig& config, const std::string& prompt, size_t tp) {
  const Vector expected = Reference(config).logits(encode(prompt));
  const std::vector<float> logits = run_tokens(*make_model(config, tp), encode(prompt), blocks_from(5, 32), 0, 13);
  ASSERT_EQ(logits.size(), expected.size());
  double largest = 0;
  for (size_t t = 0; t < logits.size(); ++t) largest = std::max(largest, std::abs(double{logits[t]} - expected[t]));
  EXPECT_LT(largest, 1e-4) << prompt;
}

TEST(SimReference, LogitsEqualThoseOfATextbookTransformer) {
  SeededRandom random(31);
  expect_reference_logits(small_config(), "", 1);
  expect_reference_logits(small_config(), random_text(random, 70), 1);
  expect_reference_logits(small_config(), random_text(random, 60), 4);
  ModelConfig wide = small_config();
  wide.query_heads = 16;  // two heads a slice, four to a KV head
  expect_reference_logits(wide, random_text(random, 40), 2);
}

TEST(SimReference, TheExponentialIsAccurate) {
  for (float x = -86.0f; x < 85.0f; x += 0.0137f) {
    EXPECT_NEAR(exponential(x) / std::exp(double{x}), 1.0, 5e-7) << x;
  }
  EXPECT_EQ(exponential(-1000.0f), 0.0f);
  EXPECT_EQ(exponential(0.0f), 1.0f);
}

}  // namespace
}  // namespace kvferry::sim
