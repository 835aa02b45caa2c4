#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>

namespace kvferry {

// A place in a list of spans.
struct PartCursor {
  std::span<const iovec> parts;
  size_t index = 0;
  size_t offset = 0;

  std::byte* at() const { return static_cast<std::byte*>(parts[index].iov_base) + offset; }
  size_t here() const { return parts[index].iov_len - offset; }
  bool end() {
    while (index < parts.size() && here() == 0) {
      ++index;
      offset = 0;
    }
    return index == parts.size();
  }
  void advance(size_t count) {
    while (count > 0 && !end()) {
      const size_t step = std::min(count, here());
      offset += step;
      count -= step;
    }
  }
  // The length of the run of small spans that begins here, at most `limit`.
  size_t small_run(size_t limit, size_t small) const {
    size_t bytes = here();
    for (size_t i = index + 1; i < parts.size() && bytes < limit && parts[i].iov_len < small; ++i)
      bytes += parts[i].iov_len;
    return std::min(bytes, limit);
  }
  // Copies up to `limit` bytes out of, or into, the spans from here on.
  size_t gather(std::byte* to, size_t limit) const {
    PartCursor walk = *this;
    size_t done = 0;
    while (done < limit && !walk.end()) {
      const size_t step = std::min(limit - done, walk.here());
      std::memcpy(to + done, walk.at(), step);
      done += step;
      walk.advance(step);
    }
    return done;
  }
  void scatter(const std::byte* from, size_t count) {
    while (count > 0 && !end()) {
      const size_t step = std::min(count, here());
      std::memcpy(at(), from, step);
      from += step;
      count -= step;
      advance(step);
    }
  }
};

}  // namespace kvferry
