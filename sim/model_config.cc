#include "sim/model_config.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvferry::sim {
namespace {

Error bad_shape(std::string message) {
  return Error{ErrorCode::invalid_argument, std::move(message), "", "", "model"};
}

}  // namespace

Status ModelConfig::validate() const {
  if (layers == 0 || layers > 64) return bad_shape("layers must be 1 to 64");
  if (query_heads == 0 || query_heads % kSlices != 0) return bad_shape("query heads must be a multiple of 8");
  if (kv_heads == 0 || query_heads % kv_heads != 0) return bad_shape("KV heads must divide the query heads");
  if (head_dim == 0 || head_dim % 16 != 0) return bad_shape("the head dimension must be a multiple of 16");
  if (mlp == 0 || mlp % (8 * kSlices) != 0) return bad_shape("the MLP width must be a multiple of 64");
  if (block_size == 0 || block_size > 1024) return bad_shape("the block size must be 1 to 1024 tokens");
  if (max_model_len < 2 || max_model_len > (1u << 20)) return bad_shape("the model length must be 2 to 1048576 tokens");
  return {};
}

std::string ModelConfig::fingerprint() const {
  return fmt::format("kvferry-sim/1 l{} q{} kv{} d{} m{} seed{} f32", layers, query_heads, kv_heads, head_dim, mlp,
                     seed);
}

Result<RankShare> RankShare::create(const ModelConfig& config, size_t rank, size_t tp) {
  KVF_RETURN_IF_ERROR(config.validate());
  if (tp == 0 || kSlices % tp != 0) return bad_shape(fmt::format("tensor parallel size {} does not divide 8", tp));
  if (rank >= tp) return bad_shape(fmt::format("rank {} of {}", rank, tp));
  if (config.kv_heads % tp != 0 && tp % config.kv_heads != 0) {
    return bad_shape(fmt::format("{} KV heads cannot be shared by {} ranks", config.kv_heads, tp));
  }
  RankShare share{.rank = rank, .tp = tp};
  share.slices = kSlices / tp;
  share.first_slice = rank * share.slices;
  share.kv_heads = std::max<size_t>(1, config.kv_heads / tp);
  share.first_kv_head = config.kv_head_of(share.first_slice * config.heads_per_slice());
  return share;
}

}  // namespace kvferry::sim
