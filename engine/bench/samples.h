#pragma once

#include <cstddef>
#include <vector>

namespace kvferry::bench {

// Durations of one kind of call, in microseconds.
class Samples {
 public:
  void add(double microseconds) { values_.push_back(microseconds); }
  void append(const Samples& other) { values_.insert(values_.end(), other.values_.begin(), other.values_.end()); }
  size_t size() const { return values_.size(); }

  // The smallest value that at least `share` (0 to 1] of all do not exceed; 0 when there are none.
  double percentile(double share) const;
  double median() const { return percentile(0.5); }

 private:
  std::vector<double> values_;
};

}  // namespace kvferry::bench
