#include "sim/model.h"

#include "sim/tokenizer.h"

namespace kvferry::sim {

Result<std::unique_ptr<Model>> Model::create(const ModelConfig& config, size_t tp, size_t blocks) {
  std::vector<std::unique_ptr<ModelRank>> ranks;
  for (size_t rank = 0; rank < tp || rank == 0; ++rank) {
    KVF_ASSIGN_OR_RETURN(std::unique_ptr<ModelRank> made, ModelRank::create(config, rank, tp, blocks));
    ranks.push_back(std::move(made));
  }
  return std::unique_ptr<Model>(new Model(config, std::move(ranks)));
}

Model::Model(const ModelConfig& config, std::vector<std::unique_ptr<ModelRank>> ranks)
    : config_(config), ranks_(std::move(ranks)) {
  if (ranks_.size() == 1) {
    collectives_.push_back(std::make_unique<SoloCollective>());
    return;
  }
  group_ = std::make_unique<ThreadGroup>(ranks_.size());
  for (size_t rank = 0; rank < ranks_.size(); ++rank) collectives_.push_back(group_->member(rank));
  for (size_t rank = 1; rank < ranks_.size(); ++rank) threads_.emplace_back([this, rank] { serve_rank(rank); });
}

Model::~Model() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

Status Model::forward(std::span<const SequenceChunk> batch, std::vector<float>& logits) {
  size_t wanted = 0;
  for (const SequenceChunk& chunk : batch) wanted += chunk.wants_logits ? 1 : 0;
  logits.resize(wanted * kVocabulary);
  if (batch.empty()) return {};
  {
    const std::lock_guard lock(mutex_);
    batch_ = batch;
    running_ = threads_.size();
    thread_status_ = Status();
    ++round_;
  }
  changed_.notify_all();
  Status status = ranks_[0]->forward(batch, *collectives_[0], logits);
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return running_ == 0; });
  return status.ok() ? thread_status_ : status;
}

void Model::serve_rank(size_t rank) {
  uint64_t done = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stop_ || round_ != done; });
    if (stop_) return;
    done = round_;
    const std::span<const SequenceChunk> batch = batch_;
    lock.unlock();
    Status status = ranks_[rank]->forward(batch, *collectives_[rank], {});
    lock.lock();
    if (!status.ok() && thread_status_.ok()) thread_status_ = std::move(status);
    if (--running_ == 0) changed_.notify_all();
  }
}

}  // namespace kvferry::sim
