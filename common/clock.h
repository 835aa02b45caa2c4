#pragma once

#include <chrono>

#include "common/api.h"

namespace kvferry {

using Duration = std::chrono::nanoseconds;

// A point of this process's monotonic clock (or of a simulator's). It never crosses the wire: durations do (I3).
using TimePoint = std::chrono::time_point<std::chrono::steady_clock, Duration>;

constexpr TimePoint kNever = TimePoint::max();

// Time as the code above sees it: the system's in production, virtual in the simulator. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual TimePoint now() const = 0;
};

class KVFERRY_API SystemClock final : public Clock {
 public:
  TimePoint now() const override;
};

// `now + span`, saturating at kNever, so that "no deadline" survives arithmetic.
TimePoint after(TimePoint now, Duration span);

double seconds(Duration span);

}  // namespace kvferry
