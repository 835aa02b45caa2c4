#pragma once

#include <sys/uio.h>

#include <memory>
#include <vector>

#include "engine/memory/registry.h"
#include "engine/parcel/span_table.h"

namespace kvferry {

// The bytes of a selection in one cache's memory, taken piece by piece in canonical order: the spans are never written
// out, however many they are. Every span is checked against its region as it is taken.
class CacheWalk {
 public:
  CacheWalk() = default;
  // The cache's regions, all of one memory kind; pinned for as long as the walk is used.
  CacheWalk(CacheSpans spans, std::vector<const RegionState*> regions)
      : left_(spans.bytes()), cursor_(std::move(spans)), regions_(std::move(regions)) {}

  // The next `max_bytes`, or what is left. Device addresses are opaque (engine/memory/memory_kind.h).
  Result<std::vector<iovec>> take(uint64_t max_bytes);
  uint64_t left() const { return left_; }
  bool at_end() const { return left_ == 0; }

 private:
  Result<std::byte*> place(const CacheSpans::Span& span);

  uint64_t left_ = 0;
  SpanCursor<1> cursor_;
  std::vector<const RegionState*> regions_;
  const RegionState* last_ = nullptr;
  iovec rest_{nullptr, 0};  // of the span that was taken in part
};

}  // namespace kvferry
