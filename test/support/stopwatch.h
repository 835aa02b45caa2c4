#pragma once

#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <thread>

#include "common/clock.h"

namespace kvferry::test {

// Time that this machine had to work in: what has passed since the start, without what it stood still. A virtual
// machine does that for whole seconds, all of it or one of its processors, and no program under test can be blamed for
// it. One thread on each processor looks at the clock all the time; when it could not, the processor stood still, or
// had so much to do that nobody else could count on it either.
class Stopwatch {
 public:
  Stopwatch() : began_(clock_.now()) {
    cpu_set_t all;
    CPU_ZERO(&all);
    ::sched_getaffinity(0, sizeof all, &all);
    for (size_t cpu = 0; cpu < CPU_SETSIZE && watchers_.size() < kMostWatchers; ++cpu) {
      if (!CPU_ISSET(cpu, &all)) continue;
      Watcher& self = watchers_.emplace_back();
      self.thread = std::thread([this, cpu, &self] { watch(cpu, self); });
    }
  }
  ~Stopwatch() {
    over_.store(true);
    for (Watcher& watcher : watchers_) watcher.thread.join();
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  // Until now: waits for a look of every thread.
  Duration stood_still() const {
    wait_for_looks(clock_.now());
    return seen_standing_still();
  }
  // As far as it was seen already.
  Duration seen_standing_still() const { return Duration(stood_still_.load()); }
  Duration elapsed() const {
    const TimePoint now = clock_.now();
    wait_for_looks(now);
    return std::max(Duration(0), now - began_ - seen_standing_still());
  }

 private:
  static constexpr size_t kMostWatchers = 16;
  static constexpr int kPause = 5;                                      // ms between two looks
  static constexpr Duration kOrdinary = std::chrono::milliseconds(50);  // what a busy processor may keep one waiting

  struct Watcher {
    std::thread thread;
    std::atomic<TimePoint> looked{TimePoint()};
  };

  void watch(size_t cpu, Watcher& self) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    ::sched_setaffinity(0, sizeof one, &one);
    TimePoint last = began_;
    while (!over_.load()) {
      ::poll(nullptr, 0, kPause);
      const TimePoint now = clock_.now();
      if (now - last > kOrdinary) stood_still_.fetch_add((now - last).count());
      self.looked.store(last = now);
    }
  }
  void wait_for_looks(TimePoint moment) const {
    for (const Watcher& watcher : watchers_)
      while (watcher.looked.load() < moment) ::poll(nullptr, 0, 1);
  }

  const SystemClock clock_;
  const TimePoint began_;
  std::atomic<bool> over_{false};
  std::atomic<int64_t> stood_still_{0};
  std::deque<Watcher> watchers_;  // a deque does not move them
};

}  // namespace kvferry::test
