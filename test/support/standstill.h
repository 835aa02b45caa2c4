#pragma once

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "common/clock.h"

namespace kvferry::test {

// How long the machine has stood still, or has kept this process from running: what a thread oversleeps that wakes
// every few milliseconds. A test that holds others to a deadline takes off what passed while nobody could keep it.
class Standstill {
 public:
  Standstill() : asleep_since_(clock_.now()), thread_([this] { run(); }) {}
  ~Standstill() {
    {
      const std::lock_guard lock(mutex_);
      over_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }
  Standstill(const Standstill&) = delete;
  Standstill& operator=(const Standstill&) = delete;

  // Since the beginning; what lies just behind counts already.
  Duration total() const {
    const std::lock_guard lock(mutex_);
    return total_ + overslept();
  }

 private:
  static constexpr Duration kSleep = std::chrono::milliseconds(5);

  Duration overslept() const { return std::max(Duration(0), clock_.now() - asleep_since_ - kSleep); }
  void run() {
    std::unique_lock lock(mutex_);
    while (!over_) {
      wake_.wait_for(lock, kSleep, [this] { return over_; });
      total_ += overslept();
      asleep_since_ = clock_.now();
    }
  }

  const SystemClock clock_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  Duration total_{0};
  TimePoint asleep_since_;
  bool over_ = false;
  std::thread thread_;
};

}  // namespace kvferry::test
