#include "sim/rank_engine.h"

#include <fmt/format.h>

#include "http/url.h"

namespace kvferry::sim {

std::string engine_id_of(const std::string& instance_id, size_t tp_rank) {
  return fmt::format("{}/0.0.{}", instance_id, tp_rank);
}

KvLayout layout_of(const KvCacheView& cache, RegionId region) {
  KvLayout layout;
  layout.rank.tp_size = static_cast<uint32_t>(cache.tp_size);
  layout.rank.tp_rank = static_cast<uint32_t>(cache.tp_rank);
  layout.layers_total = static_cast<uint32_t>(cache.layers);
  KvGroup& group = layout.groups.emplace_back();
  group.block_tokens = static_cast<uint32_t>(cache.block_size);
  group.block_count = static_cast<uint32_t>(cache.blocks);
  group.heads_total = static_cast<uint32_t>(cache.total_heads);
  group.heads_local = static_cast<uint32_t>(cache.heads);
  group.head_size_k = group.head_size_v = static_cast<uint32_t>(cache.head_dim);
  group.element_bits = static_cast<uint32_t>(cache.element_bytes * 8);
  for (size_t index = 0; index < cache.layers; ++index) {
    KvLayer& layer = layout.layers.emplace_back();
    layer.index = static_cast<uint32_t>(index);
    layer.k = {.region = region,
               .base = index * cache.layer_stride + cache.k_offset,
               .block_stride = cache.block_stride,
               .head_stride = cache.head_stride,
               .token_stride = cache.token_stride};
    layer.v = layer.k;
    layer.v.base = index * cache.layer_stride + cache.v_offset;
  }
  return layout;
}

Result<std::unique_ptr<RankEngine>> RankEngine::create(const HandoverConfig& config, const KvCacheView& cache) {
  std::unique_ptr<RankEngine> rank(new RankEngine());
  EngineConfig engine = config.engine;
  engine.engine_id = engine_id_of(config.instance_id, cache.tp_rank);
  http::Url listen;
  listen.host = config.host;
  listen.port = 0;
  engine.listen = listen.authority();
  KVF_ASSIGN_OR_RETURN(rank->engine_, Engine::create(std::move(engine)));
  // Parcels are the only way in.
  KVF_ASSIGN_OR_RETURN(rank->region_,
                       rank->engine_->register_memory(cache.base, cache.bytes, MemoryKind::host, kPrivate));
  KvLayout layout = layout_of(cache, rank->region_.id());
  rank->rank_ = layout.rank;
  rank->parcels_ = std::make_unique<Parcels>(*rank->engine_);
  KVF_RETURN_IF_ERROR(rank->parcels_->set_cache(config.instance_id, layout));
  if (config.gives) KVF_RETURN_IF_ERROR(rank->serve_bootstrap(config, layout));
  return rank;
}

Status RankEngine::serve_bootstrap(const HandoverConfig& config, const KvLayout& layout) {
  bootstrap::ServerSettings settings;
  settings.host = config.host;
  settings.logger = config.engine.logger;
  if (config.bootstrap_url.empty()) {
    KVF_ASSIGN_OR_RETURN(settings,
                         bootstrap::settings_of_worker(settings, config.host, config.bootstrap_port, layout.rank));
  } else {
    settings.port = 0;
    settings.keeps_directory = false;
    settings.base_url = config.bootstrap_url;
  }
  control_ = std::make_unique<bootstrap::EngineParcels>(*engine_);
  KVF_ASSIGN_OR_RETURN(bootstrap_, bootstrap::Server::create(std::move(settings), control_.get()));
  bootstrap_->set_worker(bootstrap::worker_of(*engine_, config.instance_id, layout));
  return {};
}

}  // namespace kvferry::sim
