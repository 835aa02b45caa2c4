#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <optional>

#include "bindings/python/core/objects.h"

namespace kvferry::python {

// Waits for the end of a transfer or of a read of a parcel, in slices, so that Ctrl-C is heard. Nothing: `timeout` has
// passed. REQUIRES: the GIL, let go of meanwhile.
template <class Waited>
auto wait_in_slices(const Waited& waited, std::optional<double> timeout) -> decltype(waited.poll()) {
  constexpr Duration kSlice = std::chrono::milliseconds(200);
  const SystemClock clock;
  const TimePoint deadline = timeout ? after(clock.now(), to_duration(timeout)) : kNever;
  while (true) {
    const Duration left = std::min(kSlice, deadline - clock.now());
    auto outcome = without_gil([&] { return waited.wait_for(left); });
    if (outcome || left < kSlice) return outcome;
    if (PyErr_CheckSignals() != 0) throw nanobind::python_error();
  }
}

}  // namespace kvferry::python
