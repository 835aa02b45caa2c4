#pragma once

#include <barrier>
#include <memory>
#include <span>
#include <vector>

#include "sim/model_config.h"

namespace kvferry::sim {

// out[i] = (((part[0][i] + part[1][i]) + part[2][i]) + ...): the one order in which slices are summed.
void sum_in_order(std::span<const float* const> parts, size_t count, float* out);

// How the ranks of one model add up what each computed. One object per rank; all ranks call in the same order with the
// same count. An implementation over processes would carry the parts through shared memory or a socket.
class Collective {
 public:
  virtual ~Collective() = default;

  // `parts`: the sums of this rank's slices, one after the other, `total.size()` floats each. `total` becomes the sum
  // over all kSlices slices in index order (sum_in_order), the same bits on every rank. An Error means that the group
  // is broken for good.
  virtual Status sum_slices(std::span<const float> parts, std::span<float> total) = 0;
};

// A group of one.
class SoloCollective final : public Collective {
 public:
  Status sum_slices(std::span<const float> parts, std::span<float> total) override;
};

// A group of threads in one process. Outlives the members that it made.
class ThreadGroup {
 public:
  explicit ThreadGroup(size_t ranks);
  std::unique_ptr<Collective> member(size_t rank);

 private:
  class Member;
  std::barrier<> barrier_;
  std::vector<std::span<const float>> parts_;  // by rank; written by each before the barrier, read by all behind it
};

}  // namespace kvferry::sim
