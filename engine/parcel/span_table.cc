#include "engine/parcel/span_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "engine/parcel/selected_side.h"

namespace kvferry {
namespace {

constexpr size_t at(KvDimension dimension) {
  return static_cast<size_t>(dimension);
}

bool same_strides(const KvPlane& left, const KvPlane& right) {
  return left.block_stride == right.block_stride && left.head_stride == right.head_stride &&
         left.token_stride == right.token_stride;
}

// Whether layers `a` and `b` differ only in where they begin, in `planes` planes.
bool same_layer_shape(const SelectedSide& side, size_t a, size_t b, size_t planes) {
  if (!same_strides(side.plane(a, 0), side.plane(b, 0))) return false;
  if (planes == 1) return true;
  return same_strides(side.plane(a, 1), side.plane(b, 1)) &&
         side.plane(a, 1).base - side.plane(a, 0).base == side.plane(b, 1).base - side.plane(b, 0).base &&
         (side.plane(a, 1).region == side.plane(a, 0).region) == (side.plane(b, 1).region == side.plane(b, 0).region);
}

}  // namespace

// Turns one part after another into steps and lists. The outer dimensions of the canonical order become steps: those
// before the chunks, and any across which a row's place is more than a fixed distance (other regions, other strides).
// What is left is the same for every step of a kind and is written down once.
template <size_t kSides>
class SpanTableBuilder {
 public:
  using Table = SpanTable<kSides>;
  explicit SpanTableBuilder(size_t max_spans) : max_spans_(max_spans) {}

  Status add(const SelectionPart& part, const SelectedShape& shape, const std::array<SelectedSide, kSides>& sides) {
    part_ = &part;
    shape_ = &shape;
    sides_ = &sides;
    known_.clear();
    sort_layers_by_shape();
    steps_end_ = outer_dimensions();
    step(0, Row{});
    if (!full_) return {};
    return Error{
        ErrorCode::resource_exhausted, fmt::format("the selection takes more than {} spans", max_spans_), {}, {}, {}};
  }
  Table take() && { return std::move(table_); }

 private:
  using Piece = typename Table::Piece;
  using Pieces = std::vector<Piece>;
  using Offsets = std::array<uint64_t, kSides>;
  // Indices by dimension; those that are not fixed yet are 0.
  using Row = std::array<size_t, 5>;

  void sort_layers_by_shape() {
    shapes_.assign(shape_->layers, 0);
    std::vector<size_t> examples;
    for (size_t layer = 0; layer < shape_->layers; ++layer) {
      size_t found = 0;
      while (found < examples.size() && !std::all_of(sides_->begin(), sides_->end(), [&](const SelectedSide& side) {
               return same_layer_shape(side, layer, examples[found], shape_->planes);
             }))
        ++found;
      if (found == examples.size()) examples.push_back(layer);
      shapes_[layer] = found;
    }
  }

  size_t position(KvDimension dimension) const {
    return static_cast<size_t>(std::find(part_->order.begin(), part_->order.end(), dimension) - part_->order.begin());
  }

  size_t outer_dimensions() const {
    size_t end = position(KvDimension::chunk);
    bool layers_alike = std::all_of(shapes_.begin(), shapes_.end(), [](size_t shape) { return shape == 0; });
    bool planes_alike = true;
    for (const SelectedSide& side : *sides_) {
      for (size_t layer = 0; layer < shape_->layers; ++layer) {
        layers_alike = layers_alike && side.plane(layer, 0).region == side.plane(0, 0).region;
        if (shape_->planes == 1) continue;
        layers_alike = layers_alike && side.plane(layer, 1).region == side.plane(0, 1).region;
        planes_alike = planes_alike && side.plane(layer, 0).region == side.plane(layer, 1).region &&
                       same_strides(side.plane(layer, 0), side.plane(layer, 1));
      }
    }
    if (!layers_alike) end = std::max(end, position(KvDimension::layer) + 1);
    if (!planes_alike) end = std::max(end, position(KvDimension::plane) + 1);
    return end;
  }

  size_t count(KvDimension dimension, const Row& row) const {
    switch (dimension) {
      case KvDimension::layer:
        return shape_->layers;
      case KvDimension::chunk:
        return shape_->chunk_tokens.size();
      case KvDimension::head:
        return shape_->heads;
      case KvDimension::token:
        return shape_->chunk_tokens[row[at(KvDimension::chunk)]];
      case KvDimension::plane:
        return shape_->planes;
    }
    return 0;
  }

  const KvPlane& plane(size_t side, const Row& row) const {
    return (*sides_)[side].plane(row[at(KvDimension::layer)], row[at(KvDimension::plane)]);
  }

  uint64_t address(size_t side, const Row& row) const {
    const SelectedSide::Place& place = (*sides_)[side].chunks[row[at(KvDimension::chunk)]];
    return plane(side, row).row(place.block, row[at(KvDimension::head)], place.token + row[at(KvDimension::token)]);
  }

  void step(size_t depth, Row row) {
    if (full_) return;
    if (depth < steps_end_) {
      const KvDimension dimension = part_->order[depth];
      const size_t end = count(dimension, row);
      for (size_t i = 0; i < end && !full_; ++i) {
        row[at(dimension)] = i;
        step(depth + 1, row);
      }
      return;
    }
    typename Table::Step made{};
    for (size_t side = 0; side < kSides; ++side) {
      made.region[side] = plane(side, row).region;
      made.offset[side] = address(side, row);
    }
    made.list = list_for(row);
    const Pieces& pieces = table_.lists_[made.list];
    if (table_.max_spans_ + pieces.size() > max_spans_) full_ = true;
    if (full_) return;
    table_.steps_.push_back(made);
    table_.max_spans_ += pieces.size();
    table_.bytes_ += list_bytes_[made.list];
  }

  // The list of everything inside `row`'s step. It depends on the layer's shape, the plane and how many tokens of the
  // chunk are selected, as far as these are fixed.
  uint32_t list_for(const Row& row) {
    const auto key = std::make_tuple(shapes_[row[at(KvDimension::layer)]], row[at(KvDimension::plane)],
                                     shape_->chunk_tokens[row[at(KvDimension::chunk)]]);
    if (const auto found = known_.find(key); found != known_.end()) return found->second;
    const auto list = static_cast<uint32_t>(table_.lists_.size());
    table_.lists_.push_back(pieces(steps_end_, row));
    list_bytes_.push_back(0);
    for (const Piece& piece : table_.lists_.back()) list_bytes_.back() += piece.length;
    known_.emplace(key, list);
    return list;
  }

  // All rows of the dimensions from `depth` on, relative to `row`.
  Pieces pieces(size_t depth, const Row& row) {
    if (depth == part_->order.size()) return {Piece{{}, shape_->row_bytes[row[at(KvDimension::plane)]]}};
    const KvDimension dimension = part_->order[depth];
    Pieces all;
    Pieces inner;
    size_t inner_of = 0;  // the chunk's tokens or the plane that `inner` was made for
    Row inside = row;
    const size_t end = count(dimension, row);
    for (size_t i = 0; i < end && !full_; ++i) {
      inside[at(dimension)] = i;
      const size_t kind = dimension == KvDimension::chunk   ? shape_->chunk_tokens[i]
                          : dimension == KvDimension::plane ? i
                                                            : 0;
      if (i == 0 || kind != inner_of) {
        inner = pieces(depth + 1, inside);
        inner_of = kind;
      }
      Offsets distance{};
      for (size_t side = 0; side < kSides; ++side) distance[side] = address(side, inside) - address(side, row);
      if (i == 1 && evenly_spaced(dimension) && inner.size() == 1 && all_equal(distance, inner.front().length)) {
        all.front().length *= end;  // each begins where the one before it ends
        break;
      }
      for (const Piece& piece : inner) append(all, piece, distance);
    }
    return all;
  }

  // Whether every step in it goes as far as the first; blocks, layers and planes lie anywhere.
  static bool evenly_spaced(KvDimension dimension) {
    return dimension == KvDimension::head || dimension == KvDimension::token;
  }
  static bool all_equal(const Offsets& offsets, uint64_t value) {
    return std::all_of(offsets.begin(), offsets.end(), [value](uint64_t offset) { return offset == value; });
  }

  void append(Pieces& pieces, Piece piece, const Offsets& distance) {
    for (size_t side = 0; side < kSides; ++side) piece.offset[side] += distance[side];
    if (!pieces.empty()) {
      Piece& last = pieces.back();
      bool follows = true;
      for (size_t side = 0; side < kSides; ++side)
        follows = follows && last.offset[side] + last.length == piece.offset[side];
      if (follows) {
        last.length += piece.length;
        return;
      }
    }
    if (pieces.size() >= max_spans_) full_ = true;
    if (!full_) pieces.push_back(piece);
  }

  const size_t max_spans_;
  bool full_ = false;
  Table table_;
  std::vector<uint64_t> list_bytes_;
  // Of the part that is being added.
  const SelectionPart* part_ = nullptr;
  const SelectedShape* shape_ = nullptr;
  const std::array<SelectedSide, kSides>* sides_ = nullptr;
  std::vector<size_t> shapes_;
  size_t steps_end_ = 0;
  std::map<std::tuple<size_t, size_t, uint32_t>, uint32_t> known_;
};

namespace {

template <size_t kSides>
Result<SpanTable<kSides>> build(const Selection& selection, const std::array<CacheSide, kSides>& caches,
                                const std::array<Role, kSides>& roles, size_t max_spans) {
  SpanTableBuilder<kSides> builder(max_spans);
  for (const SelectionPart& part : selection.parts) {
    KVF_ASSIGN_OR_RETURN(const SelectedShape shape, shape_of(part, caches[0], roles[0]));
    std::array<SelectedSide, kSides> sides;
    for (size_t side = 0; side < kSides; ++side) {
      KVF_ASSIGN_OR_RETURN(const SelectedShape own, shape_of(part, caches[side], roles[side]));
      if (own.row_bytes != shape.row_bytes)
        return Error{ErrorCode::conflict, "the rows of owner and reader differ in size", {}, {}, {}};
      KVF_ASSIGN_OR_RETURN(sides[side], select(part, caches[side], roles[side], shape));
    }
    KVF_RETURN_IF_ERROR(builder.add(part, shape, sides));
  }
  return std::move(builder).take();
}

}  // namespace

Result<CacheSpans> owner_spans(const Selection& selection, const CacheSide& owner, size_t max_spans) {
  return build<1>(selection, {owner}, {Role::owner}, max_spans);
}

Result<CacheSpans> reader_spans(const Selection& selection, const CacheSide& reader, size_t max_spans) {
  return build<1>(selection, {reader}, {Role::reader}, max_spans);
}

Result<CachePairs> span_pairs(const Selection& selection, const CacheSide& owner, const CacheSide& reader,
                              size_t max_spans) {
  return build<2>(selection, {owner, reader}, {Role::owner, Role::reader}, max_spans);
}

}  // namespace kvferry
