#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvferry::simulator {

struct Verdict {
  uint64_t seed = 0;
  std::string failure;  // empty: everything held
  std::vector<std::string> history;
  uint64_t digest = 0;  // the same for every run of a seed
  uint64_t events = 0;
  std::string tally;
};

// One world of a kind ("transfers", "parcels", "crowd") and a seed, from its start to its last check. With `recording`
// the history can be read; the run is the same.
using Scenario = Verdict (*)(uint64_t seed, bool recording);
// Null when there is no such kind.
Scenario find_scenario(const std::string& name);
const std::vector<std::string>& scenario_names();

Verdict run_transfers(uint64_t seed, bool recording);
Verdict run_parcels(uint64_t seed, bool recording);
Verdict run_crowd(uint64_t seed, bool recording);

}  // namespace kvferry::simulator
