#include "test/simulator/sim_loop.h"

#include <algorithm>

namespace kvferry::simulator {

Loop::TimerId SimLoop::call_at(TimePoint when, Task task) {
  const TimerId id = next_timer_++;
  timers_.emplace(std::pair{when, id}, std::move(task));
  timer_times_.emplace(id, when);
  plan();
  return id;
}

void SimLoop::cancel_timer(TimerId id) {
  const auto found = timer_times_.find(id);
  if (found == timer_times_.end()) return;
  timers_.erase({found->second, id});
  timer_times_.erase(found);
}

void SimLoop::defer(Task task) {
  deferred_.push_back(std::move(task));
  plan();
}

// At once, or as late as a thread's that left the loop to the next owner.
void SimLoop::before_sleep(Task task) {
  call_at(now() + std::chrono::milliseconds(put_off_++ % 3), std::move(task));
}

uint64_t SimLoop::watch(Pollable& pollable) {
  watched_.emplace(next_watch_, &pollable);
  return next_watch_++;
}

void SimLoop::poke() {
  poked_ = true;
  plan();
}

void SimLoop::pause_until(TimePoint when) {
  paused_until_ = std::max(paused_until_, when);
  plan();
}

void SimLoop::stop() {
  stopped_ = true;
  timeline_.cancel(planned_);
  planned_ = 0;
}

void SimLoop::drain() {
  while (!deferred_.empty()) run_deferred();
}

void SimLoop::plan() {
  if (stopped_ || in_turn_) return;
  TimePoint when = kNever;
  if (poked_ || !deferred_.empty())
    when = timeline_.now();
  else if (!timers_.empty() && timers_.begin()->first.first != kNever)
    when = timers_.begin()->first.first - offset_;
  if (when == kNever) return;
  when = std::max({when, next_allowed_, paused_until_, timeline_.now()});
  if (planned_ != 0 && planned_for_ == when) return;
  timeline_.cancel(planned_);
  planned_for_ = when;
  planned_ = timeline_.at(when, [this] {
    planned_ = 0;
    turn();
  });
}

void SimLoop::turn() {
  if (paused()) return plan();
  in_turn_ = true;
  poll();
  run_timers();
  run_deferred();
  in_turn_ = false;
  next_allowed_ = timeline_.now() + turn_cost_;
  poked_ = std::any_of(watched_.begin(), watched_.end(), [](const auto& entry) { return entry.second->ready(); });
  plan();
  after_turn_();
}

// The kernel promises no order among ready descriptors: here it is drawn.
void SimLoop::poll() {
  std::vector<uint64_t> ready;
  for (const auto& [id, pollable] : watched_)
    if (pollable->ready()) ready.push_back(id);
  for (size_t left = ready.size(); left > 1; --left) std::swap(ready[left - 1], ready[random_.below(left)]);
  for (const uint64_t id : ready) {
    const auto found = watched_.find(id);
    if (found != watched_.end() && found->second->ready()) found->second->dispatch();
  }
}

void SimLoop::run_timers() {
  const TimePoint due = now();
  while (!timers_.empty() && timers_.begin()->first.first <= due) {
    auto timer = timers_.extract(timers_.begin());
    timer_times_.erase(timer.key().second);
    timer.mapped()();
  }
}

void SimLoop::run_deferred() {
  std::vector<Task> batch;
  batch.swap(deferred_);
  for (Task& task : batch) task();
}

}  // namespace kvferry::simulator
