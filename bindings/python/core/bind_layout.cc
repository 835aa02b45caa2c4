#include <fmt/format.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/python/core/bind.h"
#include "engine/parcel/layout.h"

namespace nb = nanobind;
using namespace nb::literals;  // NOLINT(google-build-using-namespace): holds "name"_a alone

// How a KV cache lies in registered memory, as values: docs/kv-layout.md says what they mean.

namespace kvferry::python {
namespace {

void bind_rank(nb::module_& module) {
  nb::class_<ParallelRank>(module, "ParallelRank", "Sizes of an instance's parallel groups, and one rank's place.")
      .def(
          "__init__",
          [](ParallelRank* self, uint32_t tp_size, uint32_t tp_rank, uint32_t pp_size, uint32_t pp_rank,
             uint32_t dp_size,
             uint32_t dp_rank) { new (self) ParallelRank{tp_size, tp_rank, pp_size, pp_rank, dp_size, dp_rank}; },
          nb::kw_only(), "tp_size"_a = 1, "tp_rank"_a = 0, "pp_size"_a = 1, "pp_rank"_a = 0, "dp_size"_a = 1,
          "dp_rank"_a = 0)
      .def_ro("tp_size", &ParallelRank::tp_size)
      .def_ro("tp_rank", &ParallelRank::tp_rank)
      .def_ro("pp_size", &ParallelRank::pp_size)
      .def_ro("pp_rank", &ParallelRank::pp_rank)
      .def_ro("dp_size", &ParallelRank::dp_size)
      .def_ro("dp_rank", &ParallelRank::dp_rank);
}

void bind_group(nb::module_& module) {
  nb::class_<KvGroup>(module, "KvGroup",
                      "Layers that share block ids. `replicated`: every rank holds all heads (MLA). head_size_v 0: "
                      "there is no V beside K. window_tokens 0: full attention.")
      .def(
          "__init__",
          [](KvGroup* self, uint32_t block_tokens, uint32_t block_count, uint32_t heads_total, uint32_t heads_local,
             uint32_t head_size_k, uint32_t head_size_v, uint32_t element_bits, uint32_t window_tokens,
             bool replicated) {
            new (self) KvGroup{block_tokens, block_count,   heads_total,
                               heads_local,  head_size_k,   head_size_v,
                               element_bits, window_tokens, HeadSharing(replicated ? 1 : 0)};
          },
          nb::kw_only(), "block_tokens"_a, "block_count"_a, "heads_total"_a, "heads_local"_a, "head_size_k"_a,
          "head_size_v"_a, "element_bits"_a, "window_tokens"_a = 0, "replicated"_a = false)
      .def_ro("block_tokens", &KvGroup::block_tokens)
      .def_ro("block_count", &KvGroup::block_count)
      .def_ro("heads_total", &KvGroup::heads_total)
      .def_ro("heads_local", &KvGroup::heads_local)
      .def_ro("head_size_k", &KvGroup::head_size_k)
      .def_ro("head_size_v", &KvGroup::head_size_v)
      .def_ro("element_bits", &KvGroup::element_bits)
      .def_ro("window_tokens", &KvGroup::window_tokens)
      .def_prop_ro("replicated", [](const KvGroup& self) { return self.sharing == HeadSharing::replicated; });
}

void bind_layer(nb::module_& module) {
  nb::class_<KvPlane>(module, "KvPlane",
                      "Where the rows of K, or of V, of a layer lie: at base + block * block_stride + head * "
                      "head_stride + token * token_stride of a region, in bytes.")
      .def(
          "__init__",
          [](KvPlane* self, uint64_t region, uint64_t base, uint64_t block_stride, uint64_t head_stride,
             uint64_t token_stride) {
            new (self) KvPlane{region, base, block_stride, head_stride, token_stride};
          },
          nb::kw_only(), "region"_a, "base"_a, "block_stride"_a, "head_stride"_a, "token_stride"_a)
      .def_ro("region", &KvPlane::region)
      .def_ro("base", &KvPlane::base)
      .def_ro("block_stride", &KvPlane::block_stride)
      .def_ro("head_stride", &KvPlane::head_stride)
      .def_ro("token_stride", &KvPlane::token_stride);
  nb::class_<KvLayer>(module, "KvLayer", "One layer; `index` counts over all pipeline stages. v: where there is one.")
      .def(
          "__init__",
          [](KvLayer* self, uint32_t index, std::string name, uint16_t group, const KvPlane& k, nb::object v) {
            new (self) KvLayer{index, std::move(name), group, k, v.is_none() ? KvPlane() : nb::cast<KvPlane>(v)};
          },
          nb::kw_only(), "index"_a, "name"_a, "group"_a, "k"_a, "v"_a = nb::none(),
          nb::sig("def __init__(self, *, index: int, name: str, group: int, k: KvPlane, v: KvPlane | None = None) -> "
                  "None"))
      .def_ro("index", &KvLayer::index)
      .def_ro("name", &KvLayer::name)
      .def_ro("group", &KvLayer::group)
      .def_ro("k", &KvLayer::k)
      .def_ro("v", &KvLayer::v);
}

}  // namespace

void bind_layout(nb::module_& module) {
  bind_rank(module);
  bind_group(module);
  bind_layer(module);
  nb::class_<KvLayout>(module, "KvLayout", "How one rank's KV cache lies in its registered regions.")
      .def(
          "__init__",
          [](KvLayout* self, const ParallelRank& rank, uint32_t layers_total, std::vector<KvGroup> groups,
             std::vector<KvLayer> layers) {
            new (self) KvLayout{rank, layers_total, std::move(groups), std::move(layers)};
          },
          nb::kw_only(), "rank"_a, "layers_total"_a, "groups"_a, "layers"_a)
      .def_ro("rank", &KvLayout::rank)
      .def_ro("layers_total", &KvLayout::layers_total)
      .def_ro("groups", &KvLayout::groups)
      .def_ro("layers", &KvLayout::layers);
  module.def(
      "owners_to_settle",
      [](const ParallelRank& reader, uint32_t tp_size, uint32_t pp_size) {
        nb::list ranks;
        for (const RankId& owner : owners_to_settle(reader, tp_size, pp_size))
          ranks.append(nb::make_tuple(owner.pp, owner.tp));
        return ranks;
      },
      "reader"_a, "tp_size"_a, "pp_size"_a,
      nb::sig("def owners_to_settle(reader: ParallelRank, tp_size: int, pp_size: int) -> list[tuple[int, int]]"),
      "The (pp, tp) ranks of an owner of these sizes that a reader rank reads from or settles with.");
  module.attr("NO_BLOCK") = kNoBlock;
}

}  // namespace kvferry::python
