#pragma once

#include <string>

#include "bootstrap/parcel_control.h"
#include "bootstrap/server.h"
#include "bootstrap/worker_info.h"
#include "engine/engine.h"
#include "engine/parcel.h"

// How a prefiller's worker serves bootstrap for its engine:
//
//   EngineParcels control(*engine);
//   auto server = Server::create(*settings_of_worker({}, "127.0.0.1", kDefaultPort, layout.rank), &control);
//   (*server)->set_worker(worker_of(*engine, instance_id, layout));
//
// Built in the order engine, control, server, and ended in the reverse.

namespace kvferry::bootstrap {

// What a bootstrap server may do with the parcels of an engine. The engine must outlive it, and it must outlive the
// server. `done` runs on the engine's loop.
class EngineParcels final : public ParcelControl {
 public:
  explicit EngineParcels(Engine& engine) : parcels_(engine) {}

  void state(const std::string& transfer_id, std::function<void(std::optional<ParcelReport>)> done) override;
  void release(const std::string& transfer_id, bool force, std::function<void(ReleaseState)> done) override;

 private:
  Parcels parcels_;
};

// What there is to tell of an engine and its rank; with a layout, the rank is the layout's. The address is the engine's
// own: set another where it listens on all addresses. Call it again when regions have come or gone.
WorkerInfo worker_of(const Engine& engine, std::string instance_id, const ParallelRank& rank);
WorkerInfo worker_of(const Engine& engine, std::string instance_id, const KvLayout& layout);

// `settings` with port, directory and base URL as the rule of the base port wants them for this rank: pipeline rank 0
// listens on base + dp_rank * tp_size + tp_rank, others on any free port; the first of all keeps the directory, and
// every rank, that one too, registers there. `base_host`: where the first rank is.
Result<ServerSettings> settings_of_worker(ServerSettings settings, const std::string& base_host, uint16_t base,
                                          const ParallelRank& rank);

}  // namespace kvferry::bootstrap
