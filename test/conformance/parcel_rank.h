#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/fabric/loopback/loopback.h"
#include "engine/parcel.h"
#include "test/conformance/plugin_cases.h"
#include "test/support/engines.h"

namespace kvferry::test {

inline constexpr uint32_t kBlocks = 64;
inline constexpr uint32_t kLayers = 3;
inline constexpr size_t kPage = 2 * 4 * 16 * 8 * 2;  // of one layer

struct RankOptions {
  std::string name;
  std::vector<std::string> fabrics;
  std::shared_ptr<loopback::Hub> hub;
  std::shared_ptr<TestDevice> device;  // null: host memory
  uint32_t blocks = kBlocks;
  size_t staging_bytes = size_t{64} << 20;
  std::string transports = {};  // of a plug-in
  std::function<void(EngineConfig&)> configure = {};
};

// One rank's cache and the engine that serves it.
struct Rank {
  Rank(const RankOptions& options, uint64_t seed)
      : blocks(options.blocks), cache(options.device, size_t{kLayers} * options.blocks * kPage) {
    EngineConfig config;
    config.engine_id = options.name;
    config.fabrics = options.fabrics;
    config.loopback = options.hub;
    config.heartbeat = std::chrono::milliseconds(has_rdma_device() ? 1000 : 100);
    config.missed_heartbeats = 600;  // nobody dies here: a machine may stand still for a while
    config.connect_timeout = std::chrono::seconds(30);
    config.staging_bytes = options.staging_bytes;
    use_transports(config, options.fabrics.front(), options.transports);
    use_shared_memory(config, options.transports);
    if (options.configure) options.configure(config);
    std::vector<std::shared_ptr<MemoryOps>> kinds;
    if (options.device) kinds.push_back(options.device->ops());
    engine = must(Engine::create(config, kinds));
    cache.store(pattern(cache.size(), seed));
    region = must(engine->register_memory(cache.base(), cache.size(), cache.kind(), kPrivate));
    parcels.emplace(*engine);
    const Status status = parcels->set_cache(options.name + "-instance", layout());
    EXPECT_TRUE(status.ok()) << status.error().to_string();
  }

  KvLayout layout() const {
    KvLayout out;
    out.layers_total = kLayers;
    KvGroup group;
    group.block_tokens = 16;
    group.block_count = blocks;
    group.heads_total = group.heads_local = 4;
    group.head_size_k = group.head_size_v = 8;
    group.element_bits = 16;
    out.groups = {group};
    for (uint32_t i = 0; i < kLayers; ++i)
      out.layers.push_back(dense_layer(i, 0, group, PageShape::head_major, KvOrder::in_block, region.id(),
                                       uint64_t{i} * blocks * kPage));
    return out;
  }
  // The bytes of one block, over all layers.
  std::vector<std::byte> block(uint32_t id) const { return block_in(cache.load(), id); }
  std::vector<std::byte> block_in(const std::vector<std::byte>& bytes, uint32_t id) const {
    std::vector<std::byte> out;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      const auto at = bytes.begin() + static_cast<ptrdiff_t>((size_t{layer} * blocks + id) * kPage);
      out.insert(out.end(), at, at + kPage);
    }
    return out;
  }

  const uint32_t blocks;
  Buffer cache;
  std::unique_ptr<Engine> engine;
  Region region;
  std::optional<Parcels> parcels;
};

}  // namespace kvferry::test
