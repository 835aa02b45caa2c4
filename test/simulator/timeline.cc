#include "test/simulator/timeline.h"

#include <algorithm>

namespace kvferry::simulator {

Timeline::EventId Timeline::at(TimePoint when, Task task) {
  const EventId id = next_++;
  queue_.push({std::max(when, now_), id});
  tasks_.emplace(id, std::move(task));
  return id;
}

bool Timeline::step(TimePoint until) {
  while (!queue_.empty() && queue_.top().when <= until) {
    const Entry entry = queue_.top();
    queue_.pop();
    auto task = tasks_.extract(entry.id);
    if (task.empty()) continue;
    now_ = std::max(now_, entry.when);
    ++events_;
    task.mapped()();
    return true;
  }
  now_ = std::max(now_, until);
  return false;
}

}  // namespace kvferry::simulator
