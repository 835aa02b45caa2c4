#include "engine/plan/coalesce.h"

#include <algorithm>

namespace kvferry {

std::vector<Pair> coalesce(std::span<const Pair> pairs) {
  std::vector<Pair> merged;
  merged.reserve(pairs.size());
  for (const Pair& pair : pairs) {
    if (!merged.empty()) {
      Pair& last = merged.back();
      if (last.region == pair.region && last.offset + last.length == pair.offset &&
          last.local + last.length == pair.local) {
        last.length += pair.length;
        continue;
      }
    }
    merged.push_back(pair);
  }
  return merged;
}

Chunk Chunker::take() {
  Chunk chunk{next_, skip_, 0, 0, 0};
  while (next_ < pairs_.size() && chunk.count < max_pairs_ && chunk.bytes < max_bytes_) {
    const uint64_t rest = pairs_[next_].length - skip_;
    const uint64_t taken = std::min(rest, max_bytes_ - chunk.bytes);
    chunk.bytes += taken;
    ++chunk.count;
    if (taken < rest) {
      skip_ += taken;
      break;
    }
    ++chunk.ended;
    ++next_;
    skip_ = 0;
  }
  return chunk;
}

}  // namespace kvferry
