#include "engine/plan/rails.h"

#include <algorithm>
#include <string_view>

namespace kvferry {
namespace {

constexpr uint32_t kOneSwitch = 1;
constexpr uint32_t kOneRoot = 2;
constexpr uint32_t kSameNode = 10;
constexpr uint32_t kOtherNode = 20;  // where the firmware has no distances

// How many bridges, the root included, two devices have in common.
int common_bridges(std::string_view a, std::string_view b) {
  int common = 0;
  while (!a.empty() && !b.empty()) {
    const std::string_view first_a = a.substr(0, a.find('/'));
    const std::string_view first_b = b.substr(0, b.find('/'));
    if (first_a != first_b) break;
    ++common;
    a.remove_prefix(std::min(first_a.size() + 1, a.size()));
    b.remove_prefix(std::min(first_b.size() + 1, b.size()));
  }
  return common;
}

}  // namespace

uint32_t distance(const Place& memory, const Place& device, const std::vector<std::vector<int>>& numa_distances) {
  // The root and a port of it lead to one switch; with the root alone in common, traffic passes the processor.
  const int common = common_bridges(memory.pci, device.pci);
  if (common >= 2) return kOneSwitch;
  if (common == 1) return kOneRoot;
  if (memory.numa_node < 0 || device.numa_node < 0) return 0;
  if (memory.numa_node == device.numa_node) return kSameNode;
  const auto from = static_cast<size_t>(memory.numa_node);
  const auto to = static_cast<size_t>(device.numa_node);
  if (from >= numa_distances.size() || to >= numa_distances[from].size() || numa_distances[from][to] <= 0)
    return kOtherNode;
  return std::max(static_cast<uint32_t>(numa_distances[from][to]), kSameNode + 1);
}

std::optional<size_t> choose_rail(std::span<const Rail> rails, uint64_t bytes, uint64_t depth) {
  const bool any = std::any_of(rails.begin(), rails.end(), [](const Rail& rail) { return rail.usable; });
  const auto counts = [any](const Rail& rail) { return rail.usable || !any; };
  // Speeds are compared only where all are known.
  bool known = true;
  uint32_t nearest = UINT32_MAX;
  for (const Rail& rail : rails)
    if (counts(rail)) {
      known &= rail.gigabits > 0;
      nearest = std::min(nearest, rail.distance);
    }
  std::optional<size_t> best;
  double best_end = 0;
  for (size_t i = 0; i < rails.size(); ++i) {
    const Rail& rail = rails[i];
    if (!counts(rail) || rail.distance != nearest || rail.waiting >= depth) continue;
    const double end = static_cast<double>(rail.waiting + bytes) / (known ? rail.gigabits : 1);
    if (!best || end < best_end) {
      best = i;
      best_end = end;
    }
  }
  return best;
}

}  // namespace kvferry
