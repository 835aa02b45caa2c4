#pragma once

#include <memory>
#include <span>
#include <vector>

#include "sim/collective.h"
#include "sim/kv_cache.h"
#include "sim/weights.h"

namespace kvferry::sim {

// Some consecutive tokens of one sequence to run: a chunk of its prompt, or its newest token.
struct SequenceChunk {
  std::span<const Token> tokens;    // not empty, each below kVocabulary
  size_t first_position;            // of tokens[0]; the KV of all positions before it is in the cache
  std::span<const BlockId> blocks;  // the block table, covering at least first_position + tokens.size()
  bool wants_logits = false;        // of the last token
};

// One tensor parallel rank: a slice of heads and MLP with its own KV cache memory. Used by one thread at a time.
class ModelRank {
 public:
  static Result<std::unique_ptr<ModelRank>> create(const ModelConfig& config, size_t rank, size_t tp, size_t blocks);

  // Runs the chunks together, writes their KV, and, for each that wants logits, one row of kVocabulary floats into
  // `logits`, in order (an empty span: not wanted on this rank). All ranks of `group` run the same batch.
  Status forward(std::span<const SequenceChunk> batch, Collective& group, std::span<float> logits);

  const KvCacheView& kv_cache() const { return cache_->view(); }

 private:
  struct Row {  // one token of the batch
    size_t chunk;
    size_t position;
    Token token;
  };
  ModelRank(const ModelConfig& config, const RankShare& share, std::unique_ptr<KvCache> cache);

  void begin(std::span<const SequenceChunk> batch);
  void write_kv(std::span<const SequenceChunk> batch, size_t layer);
  void attention(std::span<const SequenceChunk> batch, size_t layer);
  void attend_head(std::span<const SequenceChunk> batch, size_t layer, size_t query_head);
  void mlp(size_t layer);
  Status add_slices(Collective& group);
  void write_logits(std::span<const SequenceChunk> batch, std::span<float> logits);
  const float* cosines(size_t position) const { return &weights_.cosines[position * config_.head_dim / 2]; }
  const float* sines(size_t position) const { return &weights_.sines[position * config_.head_dim / 2]; }

  const ModelConfig config_;
  const RankShare share_;
  const RankWeights weights_;
  const std::unique_ptr<KvCache> cache_;

  // Scratch of the running batch, [rows][width] each.
  std::vector<Row> rows_;
  std::vector<float> residual_;
  std::vector<float> normed_;
  std::vector<float> projected_;  // queries of one slice, then what its heads found; K or V of one head
  std::vector<float> gate_;
  std::vector<float> up_;
  std::vector<float> parts_;  // [slice][row][hidden]
  std::vector<float> total_;
  std::vector<float> scores_;
  std::vector<const float*> pages_;
};

}  // namespace kvferry::sim
