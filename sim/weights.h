#pragma once

#include <vector>

#include "sim/kernels.h"
#include "sim/model_config.h"

namespace kvferry::sim {

// The part of a layer that belongs to one of the kSlices slices.
struct SliceWeights {
  PackedMatrix query;   // hidden -> heads_per_slice * head_dim
  PackedMatrix output;  // heads_per_slice * head_dim -> hidden
  PackedMatrix gate;    // hidden -> mlp_per_slice
  PackedMatrix up;
  PackedMatrix down;  // mlp_per_slice -> hidden
};

struct LayerWeights {
  std::vector<SliceWeights> slices;  // of the rank, from share.first_slice
  std::vector<PackedMatrix> key;     // hidden -> head_dim, for each KV head of the rank
  std::vector<PackedMatrix> value;
};

// What one rank holds of the model. Each tensor is drawn from the config's seed and the tensor's own name, so that all
// ways of sharing the model among ranks see the same numbers.
struct RankWeights {
  std::vector<float> embedding;  // token -> hidden, rows
  std::vector<float> position;   // position -> hidden, rows; added to the embedding
  std::vector<LayerWeights> layers;
  PackedMatrix head;             // hidden -> vocabulary
  std::vector<float> head_bias;  // per token: 0 or very negative (is_offered)
  std::vector<float> cosines;    // position -> head_dim / 2, rows
  std::vector<float> sines;

  static RankWeights create(const ModelConfig& config, const RankShare& share);
};

}  // namespace kvferry::sim
