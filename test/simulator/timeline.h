#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <unordered_map>
#include <vector>

#include "common/clock.h"
#include "engine/io/loop.h"

namespace kvferry::simulator {

// Virtual time, and everything that will happen in it: one queue for all engines, wires and faults of a world. Events
// of one instant happen in the order in which they were asked for.
class Timeline {
 public:
  using EventId = uint64_t;  // 0: none

  TimePoint now() const { return now_; }
  EventId at(TimePoint when, Task task);
  EventId in(Duration delay, Task task) { return at(now_ + delay, std::move(task)); }
  void cancel(EventId id) { tasks_.erase(id); }

  // Makes the next event happen if it is due by `until`; else moves the clock there. False: nothing was due.
  bool step(TimePoint until);
  uint64_t events() const { return events_; }

 private:
  struct Entry {
    TimePoint when;
    EventId id;
    bool operator>(const Entry& other) const { return when != other.when ? when > other.when : id > other.id; }
  };
  TimePoint now_ = TimePoint(std::chrono::hours(1));
  EventId next_ = 1;
  uint64_t events_ = 0;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> queue_;
  std::unordered_map<EventId, Task> tasks_;  // a cancelled event is in queue_ alone
};

}  // namespace kvferry::simulator
