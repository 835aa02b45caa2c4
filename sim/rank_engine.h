#pragma once

#include <memory>
#include <string>

#include "bootstrap/bootstrap.h"
#include "common/log.h"
#include "engine/parcel.h"
#include "sim/kv_cache.h"

namespace kvferry::sim {

// What all ranks of one server's hand-over are told.
struct HandoverConfig {
  bool gives = true;               // prefiller: publishes parcels and serves bootstrap
  bool takes = true;               // decoder: reads parcels
  std::string instance_id;         // new at every start
  std::string model_fingerprint;   // ModelConfig::fingerprint()
  size_t block_size = 16;          // tokens
  std::string host = "127.0.0.1";  // of the engines and the bootstrap servers
  uint16_t bootstrap_port = 8998;  // the base: rank r listens on base + r
  std::string bootstrap_url;       // of a directory outside this process; then ranks take free ports
  Duration lease = std::chrono::seconds(480);
  EngineConfig engine;  // of each rank, but for its id and address
};

// The name that the engine of one rank has.
std::string engine_id_of(const std::string& instance_id, size_t tp_rank);

// A rank's pages as an engine's layout. REQUIRES: the cache lies in `region` from its beginning.
KvLayout layout_of(const KvCacheView& cache, RegionId region);

// One tensor parallel rank's share of the hand-over: an engine with the rank's KV cache registered, its parcels, and,
// at a prefiller, its bootstrap server. `cache` must outlive it.
class RankEngine {
 public:
  static Result<std::unique_ptr<RankEngine>> create(const HandoverConfig& config, const KvCacheView& cache);

  Engine& engine() { return *engine_; }
  const Engine& engine() const { return *engine_; }
  Parcels& parcels() { return *parcels_; }
  const ParallelRank& rank() const { return rank_; }
  // 0: it has no bootstrap server.
  uint16_t bootstrap_port() const { return bootstrap_ ? bootstrap_->port() : uint16_t{0}; }

 private:
  RankEngine() = default;
  Status serve_bootstrap(const HandoverConfig& config, const KvLayout& layout);

  ParallelRank rank_;
  std::unique_ptr<Engine> engine_;
  Region region_;
  std::unique_ptr<Parcels> parcels_;
  std::unique_ptr<bootstrap::EngineParcels> control_;
  std::unique_ptr<bootstrap::Server> bootstrap_;
};

}  // namespace kvferry::sim
