#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "common/result.h"

namespace kvferry::bench {

// Anonymous memory, every page of it present. Each 8 bytes of a filled pool tell their place and the seed.
class Pool {
 public:
  static Result<std::unique_ptr<Pool>> create(uint64_t bytes);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  std::byte* base() const { return base_; }
  uint64_t size() const { return bytes_; }
  void fill(uint64_t seed);

 private:
  Pool(std::byte* base, uint64_t bytes) : base_(base), bytes_(bytes) {}
  std::byte* const base_;
  const uint64_t bytes_;
};

// A block that was copied from offset `from` of one pool to offset `to` of another.
struct Moved {
  uint64_t to;
  uint64_t from;
  uint64_t length;
};

// Whether every byte of `pool` is what it was filled with (`seed`), but for the blocks, which must hold what a pool of
// `from_seed` has at their source. Lengths and offsets are multiples of 8.
Status check_pool(const Pool& pool, uint64_t seed, std::span<const Moved> moved, uint64_t from_seed);

}  // namespace kvferry::bench
