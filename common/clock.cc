#include "common/clock.h"

namespace kvferry {

TimePoint SystemClock::now() const {
  return std::chrono::steady_clock::now();
}

TimePoint after(TimePoint now, Duration span) {
  if (now == kNever || span > kNever - now) return kNever;
  return now + span;
}

double seconds(Duration span) {
  return std::chrono::duration<double>(span).count();
}

}  // namespace kvferry
