#pragma once

#include <cstdint>
#include <string_view>

#include "common/clock.h"

namespace kvferry::proxy {

// Keeps requests away from a backend that fails. State table:
//   closed    --failures reach the threshold, or one hard failure--> open
//   open      --its time is up-->                                   half_open (one trial request)
//   half_open --success--> closed      half_open --failure--> open, for twice as long
//   any       --a health probe succeeds after an open period-->      closed
// A hard failure is one that says the backend is not there: connection refused. Pure: time is an argument.
class Breaker {
 public:
  enum class State : uint8_t { closed, half_open, open };

  static constexpr int kThreshold = 5;
  static constexpr Duration kFirstOpen = std::chrono::milliseconds(500);
  static constexpr Duration kLongestOpen = std::chrono::seconds(30);

  State state(TimePoint now) const;
  // True if a request may be sent now.
  bool allows(TimePoint now) const {
    return state(now) == State::closed || (state(now) == State::half_open && !trial_);
  }
  // A request goes out: in half_open it is the trial.
  void starts(TimePoint now) { trial_ = trial_ || state(now) == State::half_open; }
  void succeeded();
  void failed(TimePoint now, bool hard);
  // The trial ended without a verdict (the client left).
  void undecided() { trial_ = false; }

 private:
  int failures_ = 0;
  bool open_ = false;
  bool trial_ = false;
  TimePoint until_{};
  Duration span_ = kFirstOpen;
};

std::string_view to_string(Breaker::State state);

}  // namespace kvferry::proxy
