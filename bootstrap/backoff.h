#pragma once

#include <algorithm>

#include "common/clock.h"
#include "common/random.h"

namespace kvferry::bootstrap {

// `span`, shortened by up to half of it, so that those who failed together do not come back together.
inline Duration jittered(Duration span, Random& random) {
  const auto half = static_cast<uint64_t>(std::max<Duration::rep>(span.count() / 2, 1));
  return Duration(span.count() - static_cast<Duration::rep>(random.below(half)));
}

// Pauses between tries: doubling from `first` to `longest`, with jitter.
class Backoff {
 public:
  Backoff(Duration first, Duration longest, Random& random) : first_(first), longest_(longest), random_(random) {}
  Duration next() {
    const Duration span = next_ == Duration(0) ? first_ : next_;
    next_ = std::min(2 * span, longest_);
    return jittered(span, random_);
  }
  void reset() { next_ = Duration(0); }

 private:
  const Duration first_;
  const Duration longest_;
  Random& random_;
  Duration next_{0};
};

}  // namespace kvferry::bootstrap
