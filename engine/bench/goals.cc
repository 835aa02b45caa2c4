#include "engine/bench/goals.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvferry::bench {
namespace {

constexpr uint64_t kBulkBytes = uint64_t{64} << 20;

Verdict ratio_at_most(const Medians& medians, double most) {
  return {fmt::format("<= {} x raw", most), medians.limit > 0 && medians.product <= most * medians.limit};
}

Verdict bulk(const Case& tested, const Medians& medians) {
  constexpr double kOfOne = 0.95;
  constexpr double kOfFour = 0.9;
  const bool above_one = medians.limit > 0 && medians.limit >= kOfOne * medians.product;
  if (tested.fabric == "local") return {fmt::format(">= {} x raw speed", kOfOne), above_one};
  const bool above_four = medians.four_raw > 0 && medians.four_raw >= kOfFour * medians.product;
  return {fmt::format(">= {} x one raw, >= {} x four", kOfOne, kOfFour), above_one && above_four};
}

}  // namespace

std::optional<Verdict> judge(const Case& tested, const Medians& medians) {
  const bool built_in = tested.fabric == "local" || tested.fabric == "tcp";
  if (tested.threads != 1 || !built_in) return std::nullopt;
  if (tested.count == 1 && tested.block == 4096) {
    if (tested.fabric == "local") return at_most(medians.product, 6, "us");
    const double allowed = std::max(1.3 * medians.limit, medians.limit + 10);
    return Verdict{"<= 1.3 x ping-pong or + 10 us", medians.limit > 0 && medians.product <= allowed};
  }
  if (tested.count == 1 && tested.block >= kBulkBytes) return bulk(tested, medians);
  if (tested.count >= 256 && tested.scattered) return ratio_at_most(medians, 1.25);
  return std::nullopt;
}

Verdict at_most(double value, double limit, const std::string& unit) {
  return {fmt::format("<= {:g} {}", limit, unit), value <= limit};
}

Verdict at_least(double value, double limit, const std::string& unit) {
  return {fmt::format(">= {:g} {}", limit, unit), value >= limit};
}

}  // namespace kvferry::bench
