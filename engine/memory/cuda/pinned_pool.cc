#include "engine/memory/cuda/pinned_pool.h"

#include <algorithm>
#include <bit>
#include <iterator>

namespace kvferry::cuda {

size_t PinnedPool::rounded(size_t length) {
  return std::bit_ceil(std::max(length, kSmallest));
}

std::byte* PinnedPool::take(size_t length) {
  const size_t size = rounded(length);
  auto& kept = kept_[size];
  std::byte* memory = nullptr;
  if (!kept.empty()) {
    memory = kept.back();
    kept.pop_back();
    kept_bytes_ -= size;
  } else {
    void* fresh = nullptr;
    // Portable: pinned for every device; mapped: the kernel reaches it at the same address.
    if (driver_->host_alloc(&fresh, size, kHostPortable | kHostMapped) != kSuccess) return nullptr;
    memory = static_cast<std::byte*>(fresh);
  }
  taken_.emplace(memory, size);
  return memory;
}

void PinnedPool::give(std::byte* memory) {
  const auto entry = taken_.extract(memory);
  if (entry.empty()) return;
  const size_t size = entry.mapped();
  if (kept_bytes_ + size > kKept) {
    driver_->host_free(memory);
    return;
  }
  kept_[size].push_back(memory);
  kept_bytes_ += size;
}

void PinnedPool::clear() {
  for (auto& [size, kept] : kept_)
    for (std::byte* memory : kept) driver_->host_free(memory);
  kept_.clear();
  kept_bytes_ = 0;
}

bool PinnedPool::holds(const std::byte* memory, size_t length) const {
  auto after = taken_.upper_bound(memory);
  if (after == taken_.begin()) return false;
  const auto& [base, size] = *std::prev(after);
  const auto offset = static_cast<size_t>(memory - base);
  return offset < size && length <= size - offset;
}

}  // namespace kvferry::cuda
