#include "sim/kernels.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common/check.h"

namespace kvferry::sim {
namespace {

// Four explicit lanes: which addition happens in which lane is part of the result, so it is not left to the compiler.
using Float4 = float __attribute__((vector_size(16)));
using Int4 = int32_t __attribute__((vector_size(16)));

Float4 load(const float* from) {
  Float4 value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
void store(float* to, Float4 value) {
  std::memcpy(to, &value, sizeof value);
}
Float4 splat(float x) {
  return Float4{x, x, x, x};
}
float sum_lanes(Float4 x) {
  return (x[0] + x[1]) + (x[2] + x[3]);
}

Float4 exponential4(Float4 x) {
  const Int4 alive = x >= splat(-87.0f);
  const Float4 clamped = alive ? (x > splat(88.0f) ? splat(88.0f) : x) : splat(0.0f);
  const Float4 magic = splat(12582912.0f);  // 1.5 * 2^23: adding and taking it off rounds to an integer
  const Float4 n = (clamped * splat(1.44269504088896341f) + magic) - magic;
  const Float4 r = (clamped - n * splat(0.693359375f)) - n * splat(-2.12194440e-4f);
  Float4 p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = (p * r) * r + (r + splat(1.0f));
  const Int4 exponent = (__builtin_convertvector(n, Int4) + 127) << 23;
  Float4 scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return alive ? p * scale : splat(0.0f);
}

// kRows rows times one panel of eight outputs, the accumulators in registers.
template <size_t kRows>
void multiply_panel(ConstRows x, const float* panel, size_t inputs, Rows out) {
  Float4 low[kRows];
  Float4 high[kRows];
  for (size_t r = 0; r < kRows; ++r) low[r] = high[r] = splat(0.0f);
  for (size_t k = 0; k < inputs; ++k) {
    const Float4 left = load(panel + k * PackedMatrix::kPanel);
    const Float4 right = load(panel + k * PackedMatrix::kPanel + 4);
    for (size_t r = 0; r < kRows; ++r) {
      const Float4 factor = splat(x.data[r * x.stride + k]);
      low[r] += factor * left;
      high[r] += factor * right;
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    store(out.data + r * out.stride, low[r]);
    store(out.data + r * out.stride + 4, high[r]);
  }
}

// scores[p] = query . key(p) / sqrt(head_dim); returns the largest.
float score(const float* query, size_t head_dim, size_t context, const AttentionPages& pages, float* scores) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  float largest = -std::numeric_limits<float>::infinity();
  for (size_t first = 0, page = 0; first < context; first += pages.block_size, ++page) {
    const float* key = pages.pages[page];
    const size_t end = std::min(context, first + pages.block_size);
    for (size_t position = first; position < end; ++position, key += pages.token_stride) {
      Float4 even = splat(0.0f);
      Float4 odd = splat(0.0f);
      for (size_t d = 0; d < head_dim; d += 8) {
        even += load(query + d) * load(key + d);
        odd += load(query + d + 4) * load(key + d + 4);
      }
      scores[position] = sum_lanes(even + odd) * scale;
      largest = std::max(largest, scores[position]);
    }
  }
  return largest;
}

}  // namespace

PackedMatrix::PackedMatrix(size_t inputs, size_t outputs)
    : inputs_(inputs), outputs_(outputs), data_(inputs * outputs) {
  KVF_CHECK(outputs % kPanel == 0);
}

void matmul(ConstRows x, size_t rows, const PackedMatrix& weights, Rows out) {
  constexpr size_t kTile = 4;
  for (size_t panel = 0; panel < weights.outputs() / PackedMatrix::kPanel; ++panel) {
    const float* from = weights.panel(panel);
    float* to = out.data + panel * PackedMatrix::kPanel;
    size_t r = 0;
    for (; r + kTile <= rows; r += kTile) {
      multiply_panel<kTile>({x.data + r * x.stride, x.stride}, from, weights.inputs(),
                            {to + r * out.stride, out.stride});
    }
    for (; r < rows; ++r) {
      multiply_panel<1>({x.data + r * x.stride, x.stride}, from, weights.inputs(), {to + r * out.stride, out.stride});
    }
  }
}

void rms_norm(const float* x, size_t size, float* out) {
  Float4 squares = splat(0.0f);
  for (size_t i = 0; i < size; i += 4) squares += load(x + i) * load(x + i);
  const float mean = sum_lanes(squares) / static_cast<float>(size);
  const Float4 factor = splat(1.0f / std::sqrt(mean + 1e-12f));
  for (size_t i = 0; i < size; i += 4) store(out + i, load(x + i) * factor);
}

void rotate(float* head, size_t dim, const float* cosines, const float* sines) {
  const size_t half = dim / 2;
  for (size_t i = 0; i < half; i += 4) {
    const Float4 left = load(head + i);
    const Float4 right = load(head + half + i);
    store(head + i, left * load(cosines + i) - right * load(sines + i));
    store(head + half + i, right * load(cosines + i) + left * load(sines + i));
  }
}

void swiglu(float* gate, const float* up, size_t size) {
  for (size_t i = 0; i < size; i += 4) {
    const Float4 x = load(gate + i);
    store(gate + i, x / (splat(1.0f) + exponential4(-x)) * load(up + i));
  }
}

void attend(const float* query, size_t head_dim, size_t context, const AttentionPages& pages, float* scores,
            float* out) {
  const float largest = score(query, head_dim, context, pages, scores);
  const size_t padded = (context + 3) / 4 * 4;
  for (size_t p = context; p < padded; ++p) scores[p] = -std::numeric_limits<float>::infinity();
  Float4 totals = splat(0.0f);
  for (size_t p = 0; p < padded; p += 4) {
    const Float4 weight = exponential4(load(scores + p) - splat(largest));
    store(scores + p, weight);
    totals += weight;
  }
  const Float4 inverse = splat(1.0f / sum_lanes(totals));
  for (size_t d = 0; d < head_dim; d += 16) {
    Float4 sums[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
    for (size_t first = 0, page = 0; first < context; first += pages.block_size, ++page) {
      const float* value = pages.pages[page] + pages.v_offset + d;
      const size_t end = std::min(context, first + pages.block_size);
      for (size_t p = first; p < end; ++p, value += pages.token_stride) {
        const Float4 weight = splat(scores[p]);
        for (size_t i = 0; i < 4; ++i) sums[i] += weight * load(value + 4 * i);
      }
    }
    for (size_t i = 0; i < 4; ++i) store(out + d + 4 * i, sums[i] * inverse);
  }
}

float exponential(float x) {
  return exponential4(splat(x))[0];
}

}  // namespace kvferry::sim
