#pragma once

#include <cstdint>
#include <functional>
#include <utility>

#include "common/clock.h"

namespace kvferry {

using Task = std::function<void()>;

// Time and order as everything below Engine sees them: epoll in production, a queue of virtual time in the simulator.
// All methods are called by whoever owns the loop now ("on loop"); nothing here is thread-safe.
class Loop {
 public:
  using TimerId = uint64_t;  // 0: none
  virtual ~Loop() = default;

  virtual TimePoint now() const = 0;
  // Runs `task` on the loop at or after `when`, once.
  virtual TimerId call_at(TimePoint when, Task task) = 0;
  // A timer that has run or was cancelled is ignored.
  virtual void cancel_timer(TimerId id) = 0;
  // Runs `task` in this turn or the next, after the event that is being handled now.
  virtual void defer(Task task) = 0;
  // Runs `task` once, when the loop has nothing else to do and would sleep: for what nobody waits for. Whoever drives
  // the loop only until its own call is done (run/driver.h) leaves it to the next owner, a few milliseconds at most.
  virtual void before_sleep(Task task) = 0;
};

// One timer that dies with its owner.
class Timer {
 public:
  explicit Timer(Loop& loop) : loop_(loop) {}
  ~Timer() { cancel(); }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  // Replaces what was armed before.
  void arm(TimePoint when, Task task) {
    cancel();
    id_ = loop_.call_at(when, [this, run = std::move(task)] {
      id_ = 0;
      const Task keep_alive = run;  // the task may destroy this timer
      keep_alive();
    });
  }
  void cancel() {
    if (id_ != 0) loop_.cancel_timer(std::exchange(id_, 0));
  }
  bool armed() const { return id_ != 0; }

 private:
  Loop& loop_;
  Loop::TimerId id_ = 0;
};

}  // namespace kvferry
