#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "engine/types.h"

namespace kvferry {

// Merges neighbours of `pairs` that are consecutive in both memories. Order is kept: overlapping pairs land as asked.
std::vector<Pair> coalesce(std::span<const Pair> pairs);

// A run of pairs, the first and last perhaps only in part: what one frame of a stream carries.
struct Chunk {
  size_t first = 0;   // index of the first pair
  uint64_t skip = 0;  // bytes of it that earlier chunks carry
  size_t count = 0;   // pairs touched
  size_t ended = 0;   // of them, those whose last byte is in this chunk
  uint64_t bytes = 0;
};

// Cuts `pairs` into chunks of at most `max_bytes` and `max_pairs`, one call at a time.
class Chunker {
 public:
  Chunker(std::span<const Pair> pairs, uint64_t max_bytes, size_t max_pairs)
      : pairs_(pairs), max_bytes_(max_bytes), max_pairs_(max_pairs) {}
  bool done() const { return next_ == pairs_.size(); }
  Chunk take();  // REQUIRES: !done()

 private:
  std::span<const Pair> pairs_;
  uint64_t max_bytes_;
  size_t max_pairs_;
  size_t next_ = 0;
  uint64_t skip_ = 0;
};

// Calls `each(pair)` for the (clipped) pairs of a chunk.
template <class Each>
void for_each_pair(std::span<const Pair> pairs, const Chunk& chunk, Each each) {
  uint64_t left = chunk.bytes;
  uint64_t skip = chunk.skip;
  for (size_t i = chunk.first; i < chunk.first + chunk.count; ++i) {
    Pair pair = pairs[i];
    pair.local += skip;
    pair.offset += skip;
    pair.length = std::min(pair.length - skip, left);
    skip = 0;
    left -= pair.length;
    each(pair);
  }
}

}  // namespace kvferry
