#pragma once

#include <chrono>
#include <thread>

#include "common/clock.h"

namespace kvferry::test {

// Whether `condition` holds before `limit` is over: for what happens in other threads and processes and cannot be
// waited for otherwise. The limit is for a broken test, so it is long; the condition is looked at every millisecond.
template <class Condition>
[[nodiscard]] bool eventually(Condition condition, Duration limit = std::chrono::seconds(40)) {
  const SystemClock clock;
  const TimePoint deadline = clock.now() + limit;
  while (!condition()) {
    if (clock.now() > deadline) return condition();             // this thread may have slept over both
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // pause of a wait
  }
  return true;
}

}  // namespace kvferry::test
