#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "sim/kv_transfer.h"
#include "sim/model.h"
#include "sim/sampler.h"
#include "sim/scheduler.h"
#include "sim/text_assembler.h"

namespace kvferry::sim {

using GenerationId = uint64_t;

struct GenerationRequest {
  std::vector<Token> prompt;
  SamplingParams sampling;
  KvRole role = KvRole::none;
  TransferRef transfer;  // of produce and consume; produce uses the id alone
  std::string cache_salt;
  TimePoint deadline = kNever;
};

enum class FinishReason : uint8_t { stop, length, abort, error };

struct GenerationEnd {
  FinishReason reason = FinishReason::stop;
  std::optional<Error> error = {};  // of FinishReason::error
  size_t prompt_tokens = 0;
  size_t cached_tokens = 0;  // found in the prefix cache, or loaded from another server
  size_t answer_tokens = 0;
};

// One step of an answer. The text may lag behind the tokens (characters and stop strings that are not complete).
struct GenerationUpdate {
  std::optional<SampledToken> token;
  std::string text;
  std::optional<GenerationEnd> end;  // with the last update
};

struct ServingConfig {
  SchedulerConfig scheduler;
  bool recompute_failed_loads = false;               // else the request fails, as in vLLM by default
  Duration load_timeout = std::chrono::seconds(60);  // of one fetch; the request's own deadline may be earlier
};

// One server's loop body: scheduler, model, sampling and the KV hand-over. It has no thread of its own: whoever owns
// the loop calls step(), the rest may come from any thread. `model`, `clock` and `transfer` outlive it; a null
// `transfer` refuses produce and consume.
class Serving {
 public:
  using OnUpdate = std::function<void(const GenerationUpdate&)>;

  // Fails where the config does not fit the model.
  static Result<std::unique_ptr<Serving>> create(const ServingConfig& config, Model& model, const Clock& clock,
                                                 KvTransfer* transfer);
  // Callbacks of the transfer that come later find nobody. Blocks still loading must be quiet by then.
  ~Serving();

  // `on_update` runs in the loop's thread and may not block; the update with `end` is its last call, and it always
  // comes unless the Serving is destroyed first. A refusal is an update too (FinishReason::error).
  GenerationId submit(GenerationRequest request, OnUpdate on_update);
  // Ends it as soon as the loop gets there (FinishReason::abort). An id that has ended is no error.
  void abort(GenerationId id);
  void abort_all();
  void forget_cached();

  // Loop. One batch, and all that became due; false when there was nothing to do.
  bool step_on_loop();
  // Loop. Returns when there is something to do, at the latest at the next deadline or `until`.
  void wait_on_loop(TimePoint until);

  // As of the end of the latest step. Any thread.
  SchedulerStats stats() const;

 private:
  struct Generation {
    GenerationId id = 0;
    GenerationRequest request;
    OnUpdate on_update;
    TextAssembler text;
    SequenceId sequence = 0;
    size_t answered = 0;  // tokens
    size_t cached = 0;    // prompt tokens not computed for this request
  };
  using Task = std::function<void(Serving&)>;

  // What other threads leave for the loop. Callbacks of the transfer hold it too: they may outlive the Serving.
  struct Inbox {
    void post(Task task);

    std::mutex mutex;
    std::condition_variable filled;
    std::vector<Task> tasks;
    SchedulerStats stats;
    bool closed = false;
  };

  Serving(const ServingConfig& config, Model& model, const Clock& clock, KvTransfer* transfer);

  bool run_tasks();
  void start(std::unique_ptr<Generation> generation);
  void start_load(Generation& generation);
  void load_done(SequenceId sequence, const Status& status);
  bool run_batch(const Plan& plan);
  void answer(Generation& generation, std::span<const float> logits);
  // Ends a generation that has its whole answer.
  void finish(Generation& generation, FinishReason reason, GenerationUpdate update);
  std::optional<Error> hand_over(const Generation& generation);
  // Ends a generation in any state.
  void stop(Generation& generation, FinishReason reason, std::optional<Error> error);
  void leave_transfer(const Generation& generation);
  void report(Generation& generation, FinishReason reason, std::optional<Error> error, GenerationUpdate update);

  const ServingConfig config_;
  Model& model_;
  const Clock& clock_;
  KvTransfer* const transfer_;
  const std::shared_ptr<Inbox> inbox_;
  std::atomic<GenerationId> next_id_{1};

  // The loop's:
  Scheduler scheduler_;
  std::map<GenerationId, std::unique_ptr<Generation>> generations_;
  std::map<SequenceId, Generation*> by_sequence_;
  std::vector<float> logits_;
};

}  // namespace kvferry::sim
