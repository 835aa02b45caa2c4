#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "engine/memory/cuda/driver.h"

namespace kvferry::cuda {

// Page-locked host memory, which copies of the device are fast and asynchronous from and to. To lock pages takes
// milliseconds, so what is given back is kept for the next, up to kKept. Whoever calls take() or give() must have a
// context current. Not thread-safe.
class PinnedPool {
 public:
  explicit PinnedPool(std::shared_ptr<const Driver> driver) : driver_(std::move(driver)) {}
  // REQUIRES: everything was given back, and clear() was called.
  ~PinnedPool() = default;
  PinnedPool(const PinnedPool&) = delete;
  PinnedPool& operator=(const PinnedPool&) = delete;

  static constexpr size_t kKept = size_t{64} << 20;
  static constexpr size_t kSmallest = size_t{64} << 10;

  // Null when there is none to be had.
  std::byte* take(size_t length);
  void give(std::byte* memory);
  // Frees what is kept.
  void clear();
  // Whether all of it is memory of this pool that somebody has taken.
  bool holds(const std::byte* memory, size_t length) const;

 private:
  // Powers of two: what one size gave back fits the next request that is about as large.
  static size_t rounded(size_t length);

  const std::shared_ptr<const Driver> driver_;
  std::map<const std::byte*, size_t> taken_;                  // with its rounded length
  std::unordered_map<size_t, std::vector<std::byte*>> kept_;  // by rounded length
  size_t kept_bytes_ = 0;
};

}  // namespace kvferry::cuda
