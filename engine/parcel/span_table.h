#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "common/result.h"
#include "engine/parcel/selection.h"

namespace kvferry {

// The spans of a selection in canonical order, on one side (kSides 1) or paired on two, kept as they repeat: a list of
// pieces for one layer, replayed from each layer's origin. 10,000 blocks x 64 layers are 10,000 pieces and 64 steps.
template <size_t kSides>
class SpanTable {
 public:
  struct Span {
    std::array<uint64_t, kSides> region;
    std::array<uint64_t, kSides> offset;
    uint64_t length;
    bool operator==(const Span&) const = default;
  };

  // Calls visit(const Span&) for each span; neighbours that are consecutive on every side come as one.
  template <class Visit>
  void for_each(Visit&& visit) const {
    Span open{};
    for (const Step& step : steps_) {
      for (const Piece& piece : lists_[step.list]) {
        if (open.length > 0 && follows(open, step, piece)) {
          open.length += piece.length;
          continue;
        }
        if (open.length > 0) visit(std::as_const(open));
        open.length = piece.length;
        for (size_t side = 0; side < kSides; ++side) {
          open.region[side] = step.region[side];
          open.offset[side] = step.offset[side] + piece.offset[side];
        }
      }
    }
    if (open.length > 0) visit(std::as_const(open));
  }

  std::vector<Span> expand() const {
    std::vector<Span> spans;
    spans.reserve(max_spans_);
    for_each([&](const Span& span) { spans.push_back(span); });
    return spans;
  }

  // Those that the spans of one side lie in.
  std::vector<uint64_t> regions(size_t side) const {
    std::vector<uint64_t> found;
    for (const Step& step : steps_)
      if (std::find(found.rbegin(), found.rend(), step.region[side]) == found.rend())
        found.push_back(step.region[side]);
    return found;
  }

  uint64_t bytes() const { return bytes_; }
  bool empty() const { return steps_.empty(); }
  // An upper bound of what for_each visits; it is less where one step ends where the next begins.
  size_t max_spans() const { return max_spans_; }

 private:
  template <size_t>
  friend class SpanTableBuilder;
  template <size_t>
  friend class SpanCursor;

  // Offsets relative to a step's origin; they wrap where a later layer lies below the first.
  struct Piece {
    std::array<uint64_t, kSides> offset;
    uint64_t length;
  };
  struct Step {
    std::array<uint64_t, kSides> region;
    std::array<uint64_t, kSides> offset;
    uint32_t list;
  };

  static bool follows(const Span& open, const Step& step, const Piece& piece) {
    bool same = true;
    for (size_t side = 0; side < kSides; ++side) {
      same = same && open.region[side] == step.region[side] &&
             open.offset[side] + open.length == step.offset[side] + piece.offset[side];
    }
    return same;
  }

  std::vector<Step> steps_;
  std::vector<std::vector<Piece>> lists_;
  size_t max_spans_ = 0;
  uint64_t bytes_ = 0;
};

// Walks a table's spans one at a time, as for_each does, so that nobody has to write them out.
template <size_t kSides>
class SpanCursor {
 public:
  using Table = SpanTable<kSides>;
  SpanCursor() = default;
  explicit SpanCursor(Table table) : table_(std::move(table)) {}

  // False at the end.
  bool next(typename Table::Span& span) {
    bool open = false;
    while (step_ < table_.steps_.size()) {
      const auto& step = table_.steps_[step_];
      const auto& list = table_.lists_[step.list];
      if (piece_ == list.size()) {
        ++step_;
        piece_ = 0;
        continue;
      }
      const auto& piece = list[piece_];
      if (open && !Table::follows(span, step, piece)) return true;
      if (!open) {
        span.length = 0;
        for (size_t side = 0; side < kSides; ++side) {
          span.region[side] = step.region[side];
          span.offset[side] = step.offset[side] + piece.offset[side];
        }
      }
      span.length += piece.length;
      open = true;
      ++piece_;
    }
    return open;
  }

 private:
  Table table_;
  size_t step_ = 0;
  size_t piece_ = 0;
};

using CacheSpans = SpanTable<1>;
using CachePairs = SpanTable<2>;  // side 0 the owner, side 1 the reader
inline constexpr size_t kOwnerSide = 0;
inline constexpr size_t kReaderSide = 1;

// One side of a selection: how its memory lies, and which blocks hold the request, one list per group.
struct CacheSide {
  const KvLayout* layout = nullptr;
  std::span<const BlockList> blocks;
};

// I6: pieces and steps that a table may have. A selection from the wire that asks for more is refused.
inline constexpr size_t kMaxSpans = 1 << 22;

// The same bytes in the same order on either side. Anything that the side cannot serve (foreign heads, a layer or
// block that is not there) is refused by name. REQUIRES validated layouts; the selection may be a stranger's.
Result<CacheSpans> owner_spans(const Selection& selection, const CacheSide& owner, size_t max_spans = kMaxSpans);
Result<CacheSpans> reader_spans(const Selection& selection, const CacheSide& reader, size_t max_spans = kMaxSpans);
Result<CachePairs> span_pairs(const Selection& selection, const CacheSide& owner, const CacheSide& reader,
                              size_t max_spans = kMaxSpans);

}  // namespace kvferry
