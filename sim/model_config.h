#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/result.h"

namespace kvferry::sim {

using Token = int32_t;
using BlockId = uint32_t;

// Every sum over heads or MLP columns is taken over this many fixed slices in index order, whatever the tensor
// parallel size: that makes logits bit-equal for all of them.
constexpr size_t kSlices = 8;

// Shape of the transformer. Two models with equal configs have equal weights, on any machine.
struct ModelConfig {
  size_t layers = 4;
  size_t query_heads = 8;  // a multiple of kSlices
  size_t kv_heads = 4;     // divides query_heads
  size_t head_dim = 32;    // a multiple of 16
  size_t mlp = 512;        // a multiple of 8 * kSlices
  size_t block_size = 16;  // tokens of one page of the KV cache
  size_t max_model_len = 4096;
  uint64_t seed = 1;

  size_t hidden() const { return query_heads * head_dim; }
  size_t heads_per_slice() const { return query_heads / kSlices; }
  size_t mlp_per_slice() const { return mlp / kSlices; }
  // The KV head that a query head reads (GQA).
  size_t kv_head_of(size_t query_head) const { return query_head / (query_heads / kv_heads); }

  Status validate() const;
  // What must agree for KV to mean the same; nothing that differs between ranks or machines. The block size is part of
  // the layout, not of this.
  std::string fingerprint() const;
};

// The share of one tensor parallel rank. With more ranks than KV heads, neighbours hold copies of the same KV head.
struct RankShare {
  size_t rank = 0;
  size_t tp = 1;
  size_t first_slice = 0;
  size_t slices = 0;
  size_t first_kv_head = 0;
  size_t kv_heads = 0;

  // `tp` must be 1, 2, 4 or 8 and fit the KV heads.
  static Result<RankShare> create(const ModelConfig& config, size_t rank, size_t tp);
};

}  // namespace kvferry::sim
