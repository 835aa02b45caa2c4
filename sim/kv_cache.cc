#include "sim/kv_cache.h"

#include <sys/mman.h>

namespace kvferry::sim {

Result<std::unique_ptr<KvCache>> KvCache::create(const ModelConfig& config, const RankShare& share, size_t blocks) {
  if (blocks == 0 || blocks > (1u << 24)) {
    return Error{ErrorCode::invalid_argument, "the KV cache must have 1 to 16777216 blocks", "", "", "kv cache"};
  }
  KvCacheView view;
  view.tp_rank = share.rank;
  view.tp_size = share.tp;
  view.layers = config.layers;
  view.blocks = blocks;
  view.heads = share.kv_heads;
  view.first_head = share.first_kv_head;
  view.total_heads = config.kv_heads;
  view.block_size = config.block_size;
  view.head_dim = config.head_dim;
  view.v_offset = config.head_dim * view.element_bytes;
  view.token_stride = 2 * view.v_offset;
  view.head_stride = config.block_size * view.token_stride;
  view.block_stride = view.heads * view.head_stride;
  view.layer_stride = blocks * view.block_stride;
  view.bytes = config.layers * view.layer_stride;
  void* memory = mmap(nullptr, view.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return errno_error("cannot map the KV cache");
  view.base = static_cast<std::byte*>(memory);
  return std::unique_ptr<KvCache>(new KvCache(view));
}

KvCache::~KvCache() {
  munmap(view_.base, view_.bytes);
}

}  // namespace kvferry::sim
