#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "sim/model_config.h"

namespace kvferry::sim {

// Plain float32 kernels whose results do not depend on how the work was cut: each output element is computed with one
// fixed order of additions, no contraction (this file's flags), and no libm. "Rows" are tokens.

// A matrix of `inputs` x `outputs`, stored in panels of 8 outputs so that matmul streams it. outputs % 8 == 0.
class PackedMatrix {
 public:
  static constexpr size_t kPanel = 8;

  PackedMatrix() = default;
  PackedMatrix(size_t inputs, size_t outputs);

  size_t inputs() const { return inputs_; }
  size_t outputs() const { return outputs_; }
  float& at(size_t input, size_t output) { return data_[index(input, output)]; }
  float at(size_t input, size_t output) const { return data_[index(input, output)]; }
  const float* panel(size_t number) const { return data_.data() + number * inputs_ * kPanel; }

 private:
  size_t index(size_t input, size_t output) const {
    return (output / kPanel * inputs_ + input) * kPanel + output % kPanel;
  }
  size_t inputs_ = 0;
  size_t outputs_ = 0;
  std::vector<float> data_;
};

// Rows of floats that may be part of wider rows: row r starts at data + r * stride.
struct Rows {
  float* data;
  size_t stride;
};
struct ConstRows {
  const float* data;
  size_t stride;
};

// out[r] = x[r] * weights, for `rows` rows.
void matmul(ConstRows x, size_t rows, const PackedMatrix& weights, Rows out);

// out = x / rms(x). in and out may be the same. size % 4 == 0.
void rms_norm(const float* x, size_t size, float* out);

// Rotates the pairs (i, i + dim/2) of one head by the angles of one position.
void rotate(float* head, size_t dim, const float* cosines, const float* sines);

// gate[i] = silu(gate[i]) * up[i]. size % 4 == 0.
void swiglu(float* gate, const float* up, size_t size);

// The weighted mean of the values of one KV head for one query, by softmax of query . key / sqrt(head_dim), over the
// first `context` tokens of a sequence whose pages lie at `pages`. `scores` has room for context + 4 floats.
struct AttentionPages {
  std::span<const float* const> pages;  // of this layer and head, in the order of the sequence
  size_t block_size;
  size_t token_stride;  // floats
  size_t v_offset;      // floats
};
void attend(const float* query, size_t head_dim, size_t context, const AttentionPages& pages, float* scores,
            float* out);

// exp with about 1e-7 relative error, 0 below -87; the same bits everywhere.
float exponential(float x);

}  // namespace kvferry::sim
