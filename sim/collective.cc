#include "sim/collective.h"

#include <array>

#include "common/check.h"

namespace kvferry::sim {

void sum_in_order(std::span<const float* const> parts, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) out[i] = parts[0][i];
  for (const float* part : parts.subspan(1)) {
    for (size_t i = 0; i < count; ++i) out[i] += part[i];
  }
}

Status SoloCollective::sum_slices(std::span<const float> parts, std::span<float> total) {
  KVF_CHECK(parts.size() == kSlices * total.size());
  std::array<const float*, kSlices> slices;
  for (size_t s = 0; s < kSlices; ++s) slices[s] = parts.data() + s * total.size();
  sum_in_order(slices, total.size(), total.data());
  return {};
}

class ThreadGroup::Member final : public Collective {
 public:
  Member(ThreadGroup& group, size_t rank) : group_(group), rank_(rank) {}

  Status sum_slices(std::span<const float> parts, std::span<float> total) override {
    const size_t own = kSlices / group_.parts_.size();
    KVF_CHECK(parts.size() == own * total.size());
    group_.parts_[rank_] = parts;
    group_.barrier_.arrive_and_wait();
    std::array<const float*, kSlices> slices;
    for (size_t s = 0; s < kSlices; ++s) slices[s] = group_.parts_[s / own].data() + s % own * total.size();
    sum_in_order(slices, total.size(), total.data());
    group_.barrier_.arrive_and_wait();  // nobody overwrites its parts while another still reads them
    return {};
  }

 private:
  ThreadGroup& group_;
  const size_t rank_;
};

ThreadGroup::ThreadGroup(size_t ranks) : barrier_(static_cast<std::ptrdiff_t>(ranks)), parts_(ranks) {}

std::unique_ptr<Collective> ThreadGroup::member(size_t rank) {
  return std::make_unique<Member>(*this, rank);
}

}  // namespace kvferry::sim
