#include "engine/bench/samples.h"

#include <algorithm>
#include <cmath>

namespace kvferry::bench {

double Samples::percentile(double share) const {
  if (values_.empty()) return 0;
  std::vector<double> sorted = values_;
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  const size_t index = std::min(std::max<size_t>(rank, 1), sorted.size()) - 1;
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<ptrdiff_t>(index), sorted.end());
  return sorted[index];
}

}  // namespace kvferry::bench
