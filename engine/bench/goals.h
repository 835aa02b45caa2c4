#pragma once

#include <optional>
#include <string>

#include "engine/bench/cases.h"

namespace kvferry::bench {

// What a case took, in microseconds, all measured in turns.
struct Medians {
  double product = 0;
  double limit = 0;     // of the raw way; 0: not measured
  double four_raw = 0;  // four raw connections at once; 0: not measured
};

struct Verdict {
  std::string goal;  // in words
  bool reached = false;
};

// Whether the case reaches the goal that is set for its shape; nothing when none is.
std::optional<Verdict> judge(const Case& tested, const Medians& medians);

// The same for a control figure.
Verdict at_most(double value, double limit, const std::string& unit);
Verdict at_least(double value, double limit, const std::string& unit);

}  // namespace kvferry::bench
