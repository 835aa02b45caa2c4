#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "sim/model_rank.h"

namespace kvferry::sim {

// All tensor parallel ranks of one model in one process: rank 0 runs in the caller of forward(), each other rank in a
// thread of its own. Used by one thread at a time.
class Model {
 public:
  // Each rank gets `blocks` blocks; a block id means the same block on every rank.
  static Result<std::unique_ptr<Model>> create(const ModelConfig& config, size_t tp, size_t blocks);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // Runs a batch on all ranks. `logits` gets one row of kVocabulary for each chunk that wants them, in order.
  Status forward(std::span<const SequenceChunk> batch, std::vector<float>& logits);

  const ModelConfig& config() const { return config_; }
  size_t tp() const { return ranks_.size(); }
  size_t blocks() const { return ranks_.front()->kv_cache().blocks; }
  const KvCacheView& kv_cache(size_t rank) const { return ranks_[rank]->kv_cache(); }

 private:
  Model(const ModelConfig& config, std::vector<std::unique_ptr<ModelRank>> ranks);
  void serve_rank(size_t rank);

  const ModelConfig config_;
  std::vector<std::unique_ptr<ModelRank>> ranks_;
  std::unique_ptr<ThreadGroup> group_;                    // none for one rank
  std::vector<std::unique_ptr<Collective>> collectives_;  // by rank

  std::mutex mutex_;
  std::condition_variable changed_;
  // Under mutex_:
  std::span<const SequenceChunk> batch_;
  uint64_t round_ = 0;    // counts batches
  size_t running_ = 0;    // threads still in this round
  Status thread_status_;  // the first failure of a round
  bool stop_ = false;

  std::vector<std::thread> threads_;
};

}  // namespace kvferry::sim
