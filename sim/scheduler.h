#pragma once

#include <deque>
#include <map>
#include <span>
#include <vector>

#include "common/result.h"
#include "sim/sequence.h"

namespace kvferry::sim {

struct SchedulerConfig {
  size_t blocks = 1024;
  size_t block_size = 16;
  size_t max_model_len = 4096;
  size_t max_sequences = 64;        // loading or running at once; held and draining ones have only blocks
  size_t max_batched_tokens = 256;  // of one batch; at least max_sequences, so that every decode moves in every batch
  size_t max_waiting = 4096;
  bool prefix_cache = true;

  Status validate() const;
};

// Tokens [first, first + count) of a sequence, to run in the next batch. `samples`: a token follows from the last.
struct PlannedChunk {
  SequenceId id = 0;
  size_t first = 0;
  size_t count = 0;
  bool samples = false;
};

struct Plan {
  std::vector<SequenceId> expired;  // over their deadline; the caller must end them
  std::vector<SequenceId> load;     // now `loading`: tokens [computed, prompt size) are to be fetched into their blocks
  std::vector<PlannedChunk> chunks;
};

struct SchedulerStats {
  size_t waiting = 0;
  size_t loading = 0;
  size_t running = 0;
  size_t held = 0;
  size_t draining = 0;
  size_t held_blocks = 0;  // of held and draining sequences
  BlockCounts blocks;
  uint64_t prompt_tokens = 0;         // admitted so far
  uint64_t prompt_tokens_cached = 0;  // of these, found in the prefix cache
};

// Continuous batching, pure: who gets blocks, and what runs next. First come, first served; a sequence is admitted
// when the blocks for its prompt and whole answer are there, so nobody is ever preempted. Not thread-safe.
class Scheduler {
 public:
  // REQUIRES: config.validate().ok()
  explicit Scheduler(const SchedulerConfig& config);

  // invalid_argument: can never run; resource_exhausted: too many wait.
  Result<SequenceId> submit(SequenceSpec spec);

  // Admits what fits and says what to run. Every chunk must be run and told by ran() before the next plan().
  Plan plan(TimePoint now);
  void ran(const Plan& plan);

  // The token that followed from a chunk that samples.
  void append(SequenceId id, Token token);

  // The loading sequence has the KV of its prompt. The last prompt token runs here in any case: its logits are needed.
  void loaded(SequenceId id);
  // The load failed, nobody writes any more: computes the prompt itself from where the prefix cache left off.
  void recompute(SequenceId id);

  // Ends a sequence for its client: `keep` pins the blocks of a running one (held). One that loads goes on draining.
  enum class Blocks { give_back, keep };
  void end(SequenceId id, Blocks blocks = Blocks::give_back);
  // Nobody writes into the blocks of a loading (failed) or draining sequence any more.
  void quiet(SequenceId id);
  // The reader of a held sequence is done.
  void release(SequenceId id) { end(id); }

  const Sequence* find(SequenceId id) const;
  TimePoint next_deadline() const;  // of all that wait, load or run
  SchedulerStats stats() const;
  void forget_cached() { allocator_.forget_cached(); }

 private:
  Sequence& get(SequenceId id);
  void move(Sequence& sequence, SequenceEvent event);
  bool admit(Sequence& sequence);
  void plan_chunks(Plan& plan) const;
  size_t count(SequenceState state) const;

  const SchedulerConfig config_;
  BlockAllocator allocator_;
  SequenceId next_id_ = 1;
  std::map<SequenceId, Sequence> sequences_;  // all but the ended
  std::deque<SequenceId> waiting_;
  std::vector<SequenceId> running_;  // in the order of admission
  uint64_t prompt_tokens_ = 0;
  uint64_t prompt_tokens_cached_ = 0;
};

}  // namespace kvferry::sim
