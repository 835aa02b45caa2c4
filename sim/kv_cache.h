#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "sim/model_config.h"

namespace kvferry::sim {

// Where one rank's KV cache lies and how it is laid out: all that an engine needs to register the memory and that a
// parcel needs to describe it. The order is vLLM's LBHNC: layer, block, head, token, then K and V of that token. One
// (layer, block, head) page is contiguous; all strides and offsets are bytes. A view owns nothing.
struct KvCacheView {
  std::byte* base = nullptr;
  size_t bytes = 0;
  size_t tp_rank = 0;
  size_t tp_size = 1;
  size_t layers = 0;
  size_t blocks = 0;
  size_t heads = 0;       // that this rank holds
  size_t first_head = 0;  // of the model's total_heads
  size_t total_heads = 0;
  size_t block_size = 0;  // tokens
  size_t head_dim = 0;    // elements of K, and of V
  size_t element_bytes = sizeof(float);
  size_t layer_stride = 0;
  size_t block_stride = 0;
  size_t head_stride = 0;
  size_t token_stride = 0;
  size_t k_offset = 0;  // within a token
  size_t v_offset = 0;

  size_t page_bytes() const { return head_stride; }
  // REQUIRES: head < heads, counted within this rank.
  std::byte* page(size_t layer, BlockId block, size_t head) const {
    return base + layer * layer_stride + block * block_stride + head * head_stride;
  }
  float* key(size_t layer, BlockId block, size_t head, size_t token) const {
    return reinterpret_cast<float*>(page(layer, block, head) + token * token_stride + k_offset);
  }
  float* value(size_t layer, BlockId block, size_t head, size_t token) const {
    return reinterpret_cast<float*>(page(layer, block, head) + token * token_stride + v_offset);
  }
};

// The page-aligned memory of one rank's KV cache, zero at the start.
class KvCache {
 public:
  static Result<std::unique_ptr<KvCache>> create(const ModelConfig& config, const RankShare& share, size_t blocks);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  const KvCacheView& view() const { return view_; }

 private:
  explicit KvCache(const KvCacheView& view) : view_(view) {}
  KvCacheView view_;
};

}  // namespace kvferry::sim
