#include "sim/scheduler.h"

#include <fmt/format.h>

#include <algorithm>

#include "common/check.h"

namespace kvferry::sim {
namespace {

size_t blocks_for(size_t tokens, size_t block_size) {
  return (tokens + block_size - 1) / block_size;
}

Error refusal(ErrorCode code, std::string message) {
  return Error{code, std::move(message), "", "", "scheduler"};
}

}  // namespace

std::optional<SequenceState> transition(SequenceState from, SequenceEvent event) {
  using enum SequenceState;
  switch (event) {
    case SequenceEvent::admit:
      if (from == waiting) return running;
      break;
    case SequenceEvent::load:
      if (from == waiting) return loading;
      break;
    case SequenceEvent::loaded:
      if (from == loading) return running;
      break;
    case SequenceEvent::hold:
      if (from == running) return held;
      break;
    case SequenceEvent::end:
      if (from == loading) return draining;
      if (from == waiting || from == running || from == held) return ended;
      break;
    case SequenceEvent::quiet:
      if (from == loading || from == draining) return ended;
      break;
  }
  return std::nullopt;
}

Status SchedulerConfig::validate() const {
  if (blocks == 0 || block_size == 0) return refusal(ErrorCode::invalid_argument, "no KV cache blocks");
  if (max_sequences == 0) return refusal(ErrorCode::invalid_argument, "max_sequences must be at least 1");
  if (max_batched_tokens < max_sequences) {
    return refusal(ErrorCode::invalid_argument, "max_batched_tokens must be at least max_sequences");
  }
  return {};
}

Scheduler::Scheduler(const SchedulerConfig& config)
    : config_(config), allocator_(config.blocks, config.block_size, config.prefix_cache) {
  KVF_CHECK(config.validate().ok());
}

Result<SequenceId> Scheduler::submit(SequenceSpec spec) {
  if (spec.prompt.empty()) return refusal(ErrorCode::invalid_argument, "the prompt has no tokens");
  if (spec.max_new_tokens == 0) return refusal(ErrorCode::invalid_argument, "max_tokens must be at least 1");
  // Compared this way round so that absurd lengths cannot overflow.
  if (spec.prompt.size() >= config_.max_model_len || spec.max_new_tokens > config_.max_model_len - spec.prompt.size()) {
    return refusal(ErrorCode::invalid_argument,
                   fmt::format("This model's maximum context length is {} tokens; the prompt has {} and the answer may "
                               "have {}",
                               config_.max_model_len, spec.prompt.size(), spec.max_new_tokens));
  }
  const size_t blocks = blocks_for(spec.prompt.size() + spec.max_new_tokens, config_.block_size);
  if (blocks > config_.blocks) {
    return refusal(ErrorCode::invalid_argument,
                   fmt::format("the request needs {} KV cache blocks, the server has {}", blocks, config_.blocks));
  }
  if (waiting_.size() >= config_.max_waiting) {
    return refusal(ErrorCode::resource_exhausted, fmt::format("{} requests wait already", config_.max_waiting));
  }
  const SequenceId id = next_id_++;
  Sequence& sequence = sequences_[id];
  sequence.id = id;
  sequence.tokens = spec.prompt;
  sequence.spec = std::move(spec);
  waiting_.push_back(id);
  return id;
}

Plan Scheduler::plan(TimePoint now) {
  Plan plan;
  for (const auto& [id, sequence] : sequences_) {
    const bool pinned = sequence.state == SequenceState::held || sequence.state == SequenceState::draining;
    if (!pinned && sequence.spec.deadline <= now) plan.expired.push_back(id);
  }
  const auto expired = [&](SequenceId id) { return std::ranges::binary_search(plan.expired, id); };
  while (!waiting_.empty()) {
    Sequence& sequence = get(waiting_.front());
    if (expired(sequence.id)) break;  // gone before the next plan
    if (running_.size() + count(SequenceState::loading) >= config_.max_sequences || !admit(sequence)) break;
    waiting_.pop_front();
    if (sequence.state == SequenceState::loading) plan.load.push_back(sequence.id);
  }
  plan_chunks(plan);
  std::erase_if(plan.chunks, [&](const PlannedChunk& chunk) { return expired(chunk.id); });
  return plan;
}

bool Scheduler::admit(Sequence& sequence) {
  const size_t prompt = sequence.tokens.size();
  // At least the last prompt token runs here.
  std::vector<BlockId> blocks =
      allocator_.match(sequence.spec.salt, std::span<const Token>(sequence.tokens).first(prompt - 1));
  const size_t matched = blocks.size();
  const size_t needed = blocks_for(prompt + sequence.spec.max_new_tokens, config_.block_size);
  auto rest = allocator_.allocate(needed - matched);
  if (!rest) {
    allocator_.release(blocks);
    return false;
  }
  blocks.insert(blocks.end(), rest->begin(), rest->end());
  sequence.blocks = std::move(blocks);
  sequence.computed = sequence.cached = matched * config_.block_size;
  sequence.remembered_blocks = matched;
  sequence.chain = sequence.spec.salt;
  for (size_t b = 0; b < matched; ++b) {
    sequence.chain = chain_hash(
        sequence.chain, std::span<const Token>(sequence.tokens).subspan(b * config_.block_size, config_.block_size));
  }
  prompt_tokens_ += prompt;
  prompt_tokens_cached_ += sequence.cached;
  move(sequence, sequence.spec.role == KvRole::consume ? SequenceEvent::load : SequenceEvent::admit);
  return true;
}

void Scheduler::plan_chunks(Plan& plan) const {
  size_t budget = config_.max_batched_tokens;
  // Those that decode first, so that a long prompt does not stop anybody's stream; then prompts in order.
  for (const bool decoding : {true, false}) {
    for (const SequenceId id : running_) {
      const Sequence& sequence = sequences_.at(id);
      const size_t missing = sequence.tokens.size() - sequence.computed;
      if ((missing == 1) != decoding || budget == 0) continue;
      const size_t count = std::min(missing, budget);
      plan.chunks.push_back({.id = id, .first = sequence.computed, .count = count, .samples = count == missing});
      budget -= count;
    }
  }
}

void Scheduler::ran(const Plan& plan) {
  for (const PlannedChunk& chunk : plan.chunks) {
    Sequence& sequence = get(chunk.id);
    KVF_CHECK(sequence.state == SequenceState::running && sequence.computed == chunk.first);
    sequence.computed += chunk.count;
    const size_t size = config_.block_size;
    while ((sequence.remembered_blocks + 1) * size <= sequence.computed) {
      const auto tokens = std::span<const Token>(sequence.tokens).subspan(sequence.remembered_blocks * size, size);
      sequence.chain = allocator_.remember(sequence.blocks[sequence.remembered_blocks], sequence.chain, tokens);
      ++sequence.remembered_blocks;
    }
  }
}

void Scheduler::append(SequenceId id, Token token) {
  Sequence& sequence = get(id);
  KVF_CHECK(sequence.state == SequenceState::running && sequence.computed == sequence.tokens.size());
  KVF_CHECK(sequence.tokens.size() < sequence.spec.prompt.size() + sequence.spec.max_new_tokens);
  sequence.tokens.push_back(token);
}

void Scheduler::loaded(SequenceId id) {
  Sequence& sequence = get(id);
  move(sequence, SequenceEvent::loaded);
  sequence.computed = sequence.cached = sequence.tokens.size() - 1;
}

void Scheduler::recompute(SequenceId id) {
  move(get(id), SequenceEvent::loaded);
}

void Scheduler::end(SequenceId id, Blocks blocks) {
  Sequence& sequence = get(id);
  move(sequence, blocks == Blocks::keep ? SequenceEvent::hold : SequenceEvent::end);
}

void Scheduler::quiet(SequenceId id) {
  move(get(id), SequenceEvent::quiet);
}

void Scheduler::move(Sequence& sequence, SequenceEvent event) {
  const SequenceId id = sequence.id;
  const auto to = transition(sequence.state, event);
  KVF_CHECK(to.has_value());
  if (sequence.state == SequenceState::running) std::erase(running_, id);
  if (sequence.state == SequenceState::waiting && *to == SequenceState::ended) std::erase(waiting_, id);
  sequence.state = *to;
  if (*to == SequenceState::running) running_.push_back(id);
  if (*to != SequenceState::ended) return;
  allocator_.release(sequence.blocks);
  sequences_.erase(id);
}

Sequence& Scheduler::get(SequenceId id) {
  const auto found = sequences_.find(id);
  KVF_CHECK(found != sequences_.end());
  return found->second;
}

const Sequence* Scheduler::find(SequenceId id) const {
  const auto found = sequences_.find(id);
  return found == sequences_.end() ? nullptr : &found->second;
}

TimePoint Scheduler::next_deadline() const {
  TimePoint next = kNever;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence.state == SequenceState::held || sequence.state == SequenceState::draining) continue;
    next = std::min(next, sequence.spec.deadline);
  }
  return next;
}

size_t Scheduler::count(SequenceState state) const {
  return static_cast<size_t>(std::ranges::count_if(sequences_, [&](const auto& s) { return s.second.state == state; }));
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats;
  stats.waiting = waiting_.size();
  stats.loading = count(SequenceState::loading);
  stats.running = running_.size();
  stats.held = count(SequenceState::held);
  stats.draining = count(SequenceState::draining);
  for (const auto& [id, sequence] : sequences_) {
    const bool pinned = sequence.state == SequenceState::held || sequence.state == SequenceState::draining;
    if (pinned) stats.held_blocks += sequence.blocks.size();
  }
  stats.blocks = allocator_.counts();
  stats.prompt_tokens = prompt_tokens_;
  stats.prompt_tokens_cached = prompt_tokens_cached_;
  return stats;
}

}  // namespace kvferry::sim
