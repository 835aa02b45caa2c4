#include "sim/model_rank.h"

#include <algorithm>

#include "common/check.h"
#include "sim/tokenizer.h"

namespace kvferry::sim {

Result<std::unique_ptr<ModelRank>> ModelRank::create(const ModelConfig& config, size_t rank, size_t tp, size_t blocks) {
  KVF_ASSIGN_OR_RETURN(const RankShare share, RankShare::create(config, rank, tp));
  KVF_ASSIGN_OR_RETURN(std::unique_ptr<KvCache> cache, KvCache::create(config, share, blocks));
  return std::unique_ptr<ModelRank>(new ModelRank(config, share, std::move(cache)));
}

ModelRank::ModelRank(const ModelConfig& config, const RankShare& share, std::unique_ptr<KvCache> cache)
    : config_(config), share_(share), weights_(RankWeights::create(config, share)), cache_(std::move(cache)) {}

Status ModelRank::forward(std::span<const SequenceChunk> batch, Collective& group, std::span<float> logits) {
  begin(batch);
  for (size_t layer = 0; layer < config_.layers; ++layer) {
    attention(batch, layer);
    KVF_RETURN_IF_ERROR(add_slices(group));
    mlp(layer);
    KVF_RETURN_IF_ERROR(add_slices(group));
  }
  if (!logits.empty()) write_logits(batch, logits);
  return {};
}

void ModelRank::begin(std::span<const SequenceChunk> batch) {
  const size_t hidden = config_.hidden();
  rows_.clear();
  for (size_t c = 0; c < batch.size(); ++c) {
    const SequenceChunk& chunk = batch[c];
    const size_t end = chunk.first_position + chunk.tokens.size();
    KVF_CHECK(end <= config_.max_model_len && end <= chunk.blocks.size() * config_.block_size);
    for (size_t i = 0; i < chunk.tokens.size(); ++i) {
      KVF_CHECK(chunk.tokens[i] >= 0 && static_cast<size_t>(chunk.tokens[i]) < kVocabulary);
      rows_.push_back({c, chunk.first_position + i, chunk.tokens[i]});
    }
  }
  const size_t rows = rows_.size();
  residual_.resize(rows * hidden);
  normed_.resize(rows * hidden);
  projected_.resize(rows * std::max(config_.heads_per_slice(), size_t{1}) * config_.head_dim);
  gate_.resize(rows * config_.mlp_per_slice());
  up_.resize(rows * config_.mlp_per_slice());
  parts_.resize(share_.slices * rows * hidden);
  total_.resize(rows * hidden);
  scores_.resize(config_.max_model_len + 4);
  for (size_t r = 0; r < rows; ++r) {
    const float* embedding = &weights_.embedding[static_cast<size_t>(rows_[r].token) * hidden];
    const float* position = &weights_.position[rows_[r].position * hidden];
    for (size_t i = 0; i < hidden; ++i) residual_[r * hidden + i] = embedding[i] + position[i];
  }
}

void ModelRank::write_kv(std::span<const SequenceChunk> batch, size_t layer) {
  const KvCacheView& cache = cache_->view();
  const LayerWeights& weights = weights_.layers[layer];
  const size_t hidden = config_.hidden();
  const size_t dim = config_.head_dim;
  const auto slot = [&](const Row& row) {
    return std::pair(batch[row.chunk].blocks[row.position / config_.block_size], row.position % config_.block_size);
  };
  for (size_t head = 0; head < share_.kv_heads; ++head) {
    matmul({normed_.data(), hidden}, rows_.size(), weights.key[head], {projected_.data(), dim});
    for (size_t r = 0; r < rows_.size(); ++r) {
      rotate(&projected_[r * dim], dim, cosines(rows_[r].position), sines(rows_[r].position));
      const auto [block, token] = slot(rows_[r]);
      std::copy_n(&projected_[r * dim], dim, cache.key(layer, block, head, token));
    }
    matmul({normed_.data(), hidden}, rows_.size(), weights.value[head], {projected_.data(), dim});
    for (size_t r = 0; r < rows_.size(); ++r) {
      const auto [block, token] = slot(rows_[r]);
      std::copy_n(&projected_[r * dim], dim, cache.value(layer, block, head, token));
    }
  }
}

void ModelRank::attention(std::span<const SequenceChunk> batch, size_t layer) {
  const size_t hidden = config_.hidden();
  const size_t width = config_.heads_per_slice() * config_.head_dim;
  for (size_t r = 0; r < rows_.size(); ++r) rms_norm(&residual_[r * hidden], hidden, &normed_[r * hidden]);
  write_kv(batch, layer);
  for (size_t s = 0; s < share_.slices; ++s) {
    const SliceWeights& weights = weights_.layers[layer].slices[s];
    matmul({normed_.data(), hidden}, rows_.size(), weights.query, {projected_.data(), width});
    for (size_t h = 0; h < config_.heads_per_slice(); ++h) {
      attend_head(batch, layer, (share_.first_slice + s) * config_.heads_per_slice() + h);
    }
    matmul({projected_.data(), width}, rows_.size(), weights.output, {&parts_[s * rows_.size() * hidden], hidden});
  }
}

// Replaces each query of one head by what it found.
void ModelRank::attend_head(std::span<const SequenceChunk> batch, size_t layer, size_t query_head) {
  const KvCacheView& cache = cache_->view();
  const size_t dim = config_.head_dim;
  const size_t width = config_.heads_per_slice() * dim;
  const size_t kv_head = config_.kv_head_of(query_head) - share_.first_kv_head;
  size_t chunk = batch.size();
  for (size_t r = 0; r < rows_.size(); ++r) {
    const Row& row = rows_[r];
    if (row.chunk != chunk) {
      chunk = row.chunk;
      pages_.clear();
      for (const BlockId block : batch[chunk].blocks) pages_.push_back(cache.key(layer, block, kv_head, 0));
    }
    float* query = &projected_[r * width + query_head % config_.heads_per_slice() * dim];
    rotate(query, dim, cosines(row.position), sines(row.position));
    const AttentionPages pages{.pages = pages_,
                               .block_size = config_.block_size,
                               .token_stride = cache.token_stride / sizeof(float),
                               .v_offset = (cache.v_offset - cache.k_offset) / sizeof(float)};
    float found[1024];
    KVF_CHECK(dim <= std::size(found));
    attend(query, dim, row.position + 1, pages, scores_.data(), found);
    // A norm for each head, so that a head that looks at many tokens counts as much as one that looks at few.
    rms_norm(found, dim, query);
  }
}

void ModelRank::mlp(size_t layer) {
  const size_t hidden = config_.hidden();
  const size_t width = config_.mlp_per_slice();
  for (size_t r = 0; r < rows_.size(); ++r) rms_norm(&residual_[r * hidden], hidden, &normed_[r * hidden]);
  for (size_t s = 0; s < share_.slices; ++s) {
    const SliceWeights& weights = weights_.layers[layer].slices[s];
    matmul({normed_.data(), hidden}, rows_.size(), weights.gate, {gate_.data(), width});
    matmul({normed_.data(), hidden}, rows_.size(), weights.up, {up_.data(), width});
    swiglu(gate_.data(), up_.data(), rows_.size() * width);
    matmul({gate_.data(), width}, rows_.size(), weights.down, {&parts_[s * rows_.size() * hidden], hidden});
  }
}

Status ModelRank::add_slices(Collective& group) {
  const size_t count = rows_.size() * config_.hidden();
  KVF_RETURN_IF_ERROR(group.sum_slices({parts_.data(), share_.slices * count}, {total_.data(), count}));
  for (size_t i = 0; i < count; ++i) residual_[i] += total_[i];
  return {};
}

void ModelRank::write_logits(std::span<const SequenceChunk> batch, std::span<float> logits) {
  const size_t hidden = config_.hidden();
  size_t row = 0;
  size_t written = 0;
  for (const SequenceChunk& chunk : batch) {
    row += chunk.tokens.size();
    if (!chunk.wants_logits) continue;
    KVF_CHECK((written + 1) * kVocabulary <= logits.size());
    float* out = &logits[written * kVocabulary];
    rms_norm(&residual_[(row - 1) * hidden], hidden, normed_.data());
    matmul({normed_.data(), hidden}, 1, weights_.head, {out, kVocabulary});
    for (size_t t = 0; t < kVocabulary; ++t) out[t] += weights_.head_bias[t];
    ++written;
  }
}

}  // namespace kvferry::sim
