#include "sim/serving.h"

#include <algorithm>

#include "common/check.h"
#include "sim/tokenizer.h"

namespace kvferry::sim {

Result<std::unique_ptr<Serving>> Serving::create(const ServingConfig& config, Model& model, const Clock& clock,
                                                 KvTransfer* transfer) {
  KVF_RETURN_IF_ERROR(config.scheduler.validate());
  if (config.scheduler.blocks > model.blocks() || config.scheduler.block_size != model.config().block_size ||
      config.scheduler.max_model_len > model.config().max_model_len) {
    return Error{ErrorCode::invalid_argument, "the scheduler's blocks or lengths are not the model's", "", "", "sim"};
  }
  return std::unique_ptr<Serving>(new Serving(config, model, clock, transfer));
}

Serving::Serving(const ServingConfig& config, Model& model, const Clock& clock, KvTransfer* transfer)
    : config_(config),
      model_(model),
      clock_(clock),
      transfer_(transfer),
      inbox_(std::make_shared<Inbox>()),
      scheduler_(config.scheduler) {
  inbox_->stats = scheduler_.stats();
}

Serving::~Serving() {
  const std::lock_guard lock(inbox_->mutex);
  inbox_->closed = true;
  inbox_->tasks.clear();
}

void Serving::Inbox::post(Task task) {
  {
    const std::lock_guard lock(mutex);
    if (closed) return;
    tasks.push_back(std::move(task));
  }
  filled.notify_one();
}

GenerationId Serving::submit(GenerationRequest request, OnUpdate on_update) {
  auto generation = std::make_shared<std::unique_ptr<Generation>>(std::make_unique<Generation>());
  const GenerationId id = next_id_.fetch_add(1);
  (*generation)->id = id;
  (*generation)->text = TextAssembler(request.sampling.stop);
  (*generation)->request = std::move(request);
  (*generation)->on_update = std::move(on_update);
  inbox_->post([generation](Serving& self) { self.start(std::move(*generation)); });
  return id;
}

void Serving::abort(GenerationId id) {
  inbox_->post([id](Serving& self) {
    const auto found = self.generations_.find(id);
    if (found != self.generations_.end()) self.stop(*found->second, FinishReason::abort, std::nullopt);
  });
}

void Serving::abort_all() {
  inbox_->post([](Serving& self) {
    while (!self.generations_.empty()) {
      self.stop(*self.generations_.begin()->second, FinishReason::abort, std::nullopt);
    }
  });
}

void Serving::forget_cached() {
  inbox_->post([](Serving& self) { self.scheduler_.forget_cached(); });
}

SchedulerStats Serving::stats() const {
  const std::lock_guard lock(inbox_->mutex);
  return inbox_->stats;
}

bool Serving::step_on_loop() {
  bool worked = run_tasks();
  const Plan plan = scheduler_.plan(clock_.now());
  for (const SequenceId id : plan.load) start_load(*by_sequence_.at(id));
  for (const SequenceId id : plan.expired) {
    stop(*by_sequence_.at(id), FinishReason::error,
         Error{ErrorCode::deadline_exceeded, "the request's deadline passed", "", "", "sim"});
  }
  worked |= run_batch(plan) || !plan.load.empty() || !plan.expired.empty();
  const std::lock_guard lock(inbox_->mutex);
  inbox_->stats = scheduler_.stats();
  return worked;
}

void Serving::wait_on_loop(TimePoint until) {
  until = std::min(until, scheduler_.next_deadline());
  std::unique_lock lock(inbox_->mutex);
  if (!inbox_->tasks.empty()) return;
  if (until == kNever) {
    inbox_->filled.wait(lock, [&] { return !inbox_->tasks.empty(); });
  } else {
    inbox_->filled.wait_for(lock, until - clock_.now(), [&] { return !inbox_->tasks.empty(); });
  }
}

bool Serving::run_tasks() {
  std::vector<Task> tasks;
  {
    const std::lock_guard lock(inbox_->mutex);
    tasks.swap(inbox_->tasks);
  }
  for (const Task& task : tasks) task(*this);
  return !tasks.empty();
}

void Serving::start(std::unique_ptr<Generation> owned) {
  Generation& generation = *owned;
  generations_.emplace(generation.id, std::move(owned));
  const GenerationRequest& request = generation.request;
  if (request.role != KvRole::none && transfer_ == nullptr) {
    report(generation, FinishReason::error,
           Error{ErrorCode::unsupported, "this server neither gives nor takes KV", "", "", "sim"}, {});
    return;
  }
  SequenceSpec spec{.prompt = request.prompt,
                    .max_new_tokens = request.sampling.max_tokens,
                    .role = request.role,
                    .salt = std::hash<std::string>{}(request.cache_salt),
                    .deadline = request.deadline};
  Result<SequenceId> sequence = scheduler_.submit(std::move(spec));
  if (request.role == KvRole::produce && sequence.ok()) transfer_->announce(request.transfer.transfer_id);
  if (!sequence.ok()) {
    leave_transfer(generation);
    report(generation, FinishReason::error, std::move(sequence).error(), {});
    return;
  }
  generation.sequence = *sequence;
  by_sequence_[*sequence] = &generation;
}

void Serving::start_load(Generation& generation) {
  const Sequence& sequence = *scheduler_.find(generation.sequence);
  const size_t size = config_.scheduler.block_size;
  const size_t prompt = sequence.spec.prompt.size();
  const size_t first = sequence.computed / size;
  KvFetch fetch{.from = generation.request.transfer,
                .prompt = sequence.spec.prompt,
                .first_token = sequence.computed,
                .end_token = prompt,
                .blocks = {sequence.blocks.begin() + static_cast<std::ptrdiff_t>(first),
                           sequence.blocks.begin() + static_cast<std::ptrdiff_t>((prompt + size - 1) / size)},
                .cache_salt = generation.request.cache_salt,
                .deadline = std::min(sequence.spec.deadline, after(clock_.now(), config_.load_timeout))};
  transfer_->fetch(sequence.id, std::move(fetch), [inbox = inbox_, id = sequence.id](Status status) {
    inbox->post([id, status = std::move(status)](Serving& self) { self.load_done(id, status); });
  });
}

void Serving::load_done(SequenceId id, const Status& status) {
  const Sequence* sequence = scheduler_.find(id);
  KVF_CHECK(sequence != nullptr);
  if (sequence->state == SequenceState::draining) {
    scheduler_.quiet(id);
    return;
  }
  Generation& generation = *by_sequence_.at(id);
  if (status.ok()) {
    scheduler_.loaded(id);
    return;
  }
  transfer_->release(generation.request.transfer);
  if (config_.recompute_failed_loads) {
    scheduler_.recompute(id);
    return;
  }
  scheduler_.quiet(id);
  by_sequence_.erase(id);
  report(generation, FinishReason::error, status.error(), {});
}

bool Serving::run_batch(const Plan& plan) {
  // A chunk whose generation expired is not in the plan, so every chunk has its sequence.
  std::vector<SequenceChunk> batch;
  for (const PlannedChunk& chunk : plan.chunks) {
    const Sequence& sequence = *scheduler_.find(chunk.id);
    batch.push_back({.tokens = std::span(sequence.tokens).subspan(chunk.first, chunk.count),
                     .first_position = chunk.first,
                     .blocks = sequence.blocks,
                     .wants_logits = chunk.samples});
  }
  if (batch.empty()) return false;
  if (const Status status = model_.forward(batch, logits_); !status.ok()) {
    for (const PlannedChunk& chunk : plan.chunks) {
      stop(*by_sequence_.at(chunk.id), FinishReason::error, status.error());
    }
    return true;
  }
  scheduler_.ran(plan);
  std::span<const float> rest = logits_;
  for (const PlannedChunk& chunk : plan.chunks) {
    if (!chunk.samples) continue;
    answer(*by_sequence_.at(chunk.id), rest.first(kVocabulary));
    rest = rest.subspan(kVocabulary);
  }
  return true;
}

void Serving::answer(Generation& generation, std::span<const float> logits) {
  const SamplingParams& sampling = generation.request.sampling;
  const size_t index = generation.answered++;
  if (index == 0) generation.cached = scheduler_.find(generation.sequence)->cached;
  GenerationUpdate update;
  update.token = sample(logits, sampling, index);
  const Token token = update.token->token;
  const bool ended = ends_answer(token, sampling, index);
  if (!ended) update.text = generation.text.add(token_bytes(token), index + 1 >= sampling.min_tokens);
  scheduler_.append(generation.sequence, token);
  if (ended || generation.text.stopped()) {
    finish(generation, FinishReason::stop, std::move(update));
  } else if (generation.answered == sampling.max_tokens) {
    finish(generation, FinishReason::length, std::move(update));
  } else {
    generation.on_update(update);
  }
}

void Serving::finish(Generation& generation, FinishReason reason, GenerationUpdate update) {
  update.text += generation.text.finish();
  // As in vLLM, only a prompt whose answer was cut off by max_tokens is handed over.
  const bool hands_over = generation.request.role == KvRole::produce && reason == FinishReason::length;
  std::optional<Error> error = hands_over ? hand_over(generation) : std::nullopt;
  if (error) reason = FinishReason::error;
  if (!hands_over && generation.request.role == KvRole::produce) leave_transfer(generation);
  scheduler_.end(generation.sequence, hands_over && !error ? Scheduler::Blocks::keep : Scheduler::Blocks::give_back);
  by_sequence_.erase(generation.sequence);
  report(generation, reason, std::move(error), std::move(update));
}

std::optional<Error> Serving::hand_over(const Generation& generation) {
  const Sequence& sequence = *scheduler_.find(generation.sequence);
  const size_t size = config_.scheduler.block_size;
  const auto blocks = static_cast<std::ptrdiff_t>((sequence.spec.prompt.size() + size - 1) / size);
  KvPublication publication{.transfer_id = generation.request.transfer.transfer_id,
                            .prompt = sequence.spec.prompt,
                            .tokens_covered = sequence.spec.prompt.size(),
                            .blocks = {sequence.blocks.begin(), sequence.blocks.begin() + blocks},
                            .cache_salt = generation.request.cache_salt};
  Status status = transfer_->publish(std::move(publication), [inbox = inbox_, id = sequence.id] {
    inbox->post([id](Serving& self) { self.scheduler_.release(id); });
  });
  if (status.ok()) return std::nullopt;
  return std::move(status).error();
}

void Serving::stop(Generation& generation, FinishReason reason, std::optional<Error> error) {
  const Sequence& sequence = *scheduler_.find(generation.sequence);
  const SequenceState state = sequence.state;
  if (state == SequenceState::loading) transfer_->cancel(sequence.id);
  // A consumer that runs has settled with its owner already.
  if (generation.request.role == KvRole::produce || state != SequenceState::running) leave_transfer(generation);
  scheduler_.end(generation.sequence);
  by_sequence_.erase(generation.sequence);
  report(generation, reason, std::move(error), {});
}

void Serving::leave_transfer(const Generation& generation) {
  if (generation.request.role == KvRole::produce) transfer_->withdraw(generation.request.transfer.transfer_id);
  if (generation.request.role == KvRole::consume) transfer_->release(generation.request.transfer);
}

void Serving::report(Generation& generation, FinishReason reason, std::optional<Error> error, GenerationUpdate update) {
  const std::unique_ptr<Generation> owned = std::move(generations_.extract(generation.id).mapped());
  update.end = GenerationEnd{.reason = reason,
                             .error = std::move(error),
                             .prompt_tokens = owned->request.prompt.size(),
                             .cached_tokens = owned->cached,
                             .answer_tokens = owned->answered};
  owned->on_update(update);
}

}  // namespace kvferry::sim
