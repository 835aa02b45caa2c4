#include "engine/run/completion.h"

namespace kvferry {

Result<int> CompletionHub::fd() {
  const std::lock_guard lock(mutex_);
  if (!event_) {
    KVF_ASSIGN_OR_RETURN(event_, EventFd::create());
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

void CompletionHub::tell(TransferId id) {
  const std::lock_guard lock(mutex_);
  if (!event_) return;
  finished_.push_back(id);
  untaken_.store(finished_.size(), std::memory_order_relaxed);
  event_->signal();
}

void CompletionHub::ended(TransferId id) {
  tell(id);
  transfer_ended_();
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
