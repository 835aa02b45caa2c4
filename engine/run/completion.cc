#include "engine/run/completion.h"

#include <algorithm>

namespace kvferry {

Result<int> CompletionHub::fd() {
  const std::lock_guard lock(mutex_);
  if (!event_) {
    KVF_ASSIGN_OR_RETURN(event_, EventFd::create());
    untaken_.store(finished_.size(), std::memory_order_relaxed);
    if (!finished_.empty()) event_->signal();
  }
  return event_->fd();
}

std::vector<TransferId> CompletionHub::take() {
  const std::lock_guard lock(mutex_);
  if (event_) event_->drain();
  std::vector<TransferId> taken(finished_.begin(), finished_.end());
  finished_.clear();
  untaken_.store(0, std::memory_order_relaxed);
  return taken;
}

void CompletionHub::tell(TransferId news) {
  const std::lock_guard lock(mutex_);
  if (event_ || std::find(finished_.begin(), finished_.end(), news) == finished_.end()) queue(news);
}

void CompletionHub::ended(TransferId id) {
  {
    const std::lock_guard lock(mutex_);
    if (event_) queue(id);
  }
  transfer_ended_();
}

void CompletionHub::queue(TransferId id) {
  finished_.push_back(id);
  if (!event_) return;
  untaken_.store(finished_.size(), std::memory_order_relaxed);
  event_->signal();
}

bool Completion::finish(Outcome outcome) {
  const std::lock_guard lock(mutex_);
  if (outcome_) return false;
  outcome_ = std::move(outcome);
  done_.store(true, std::memory_order_release);
  return true;
}

std::vector<Completion::Callback> Completion::take_callbacks() {
  const std::lock_guard lock(mutex_);
  return std::exchange(callbacks_, {});
}

bool Completion::add_callback(Callback callback) {
  const std::lock_guard lock(mutex_);
  if (outcome_) return false;
  callbacks_.push_back(std::move(callback));
  return true;
}

}  // namespace kvferry
