#include "bootstrap/engine_parcels.h"

#include <algorithm>

#include "bootstrap/ports.h"
#include "common/bytes.h"
#include "http/url.h"

namespace kvferry::bootstrap {
namespace {

ReleaseState state_of(ReleaseAnswer answer) {
  switch (answer) {
    case ReleaseAnswer::done:
      return ReleaseState::acknowledged;
    case ReleaseAnswer::waits_for_readers:
      return ReleaseState::pending;
    case ReleaseAnswer::unknown:
      break;
  }
  return ReleaseState::unknown;
}

AuthMode auth_of(const std::string& name) {
  return name == "open" ? AuthMode::open : name == "psk" ? AuthMode::psk : AuthMode::mtls;
}

// tcp names a region by its id alone; a reader on the same host needs the index of its word in the gate.
RegionDescriptor descriptor_of(const RegionInfo& region) {
  RegionDescriptor descriptor;
  descriptor.info = region;
  if (region.permissions == kPrivate || region.word == kNoWord) return descriptor;
  std::string word;
  ByteWriter(word).put(region.word);
  descriptor.keys.push_back({"local", std::move(word)});
  return descriptor;
}

}  // namespace

void EngineParcels::state(const std::string& transfer_id, std::function<void(std::optional<ParcelReport>)> done) {
  parcels_.status(transfer_id, [done = std::move(done)](const std::optional<ParcelStatus>& status) {
    if (!status) return done(std::nullopt);
    done(ParcelReport{std::string(status->state), status->age, static_cast<uint32_t>(status->readers)});
  });
}

void EngineParcels::release(const std::string& transfer_id, bool force, std::function<void(ReleaseState)> done) {
  parcels_.release(transfer_id, force, [done = std::move(done)](ReleaseAnswer answer) { done(state_of(answer)); });
}

WorkerInfo worker_of(const Engine& engine, std::string instance_id, const ParallelRank& rank) {
  EngineSelf self = engine.self();
  WorkerInfo worker;
  worker.engine_id = std::move(self.engine_id);
  worker.instance_id = std::move(instance_id);
  worker.incarnation = self.incarnation;
  worker.address = std::move(self.address);
  worker.rank = rank;
  std::sort(self.regions.begin(), self.regions.end(),
            [](const RegionInfo& left, const RegionInfo& right) { return left.id < right.id; });
  for (const RegionInfo& region : self.regions) worker.regions.push_back(descriptor_of(region));
  for (const std::string& fabric : self.fabrics)
    worker.fabrics.push_back({fabric, fabric == "tcp" ? worker.address : std::string()});
  worker.protocol_min = self.protocol_min;
  worker.protocol_max = self.protocol_max;
  worker.auth = auth_of(self.auth);
  return worker;
}

WorkerInfo worker_of(const Engine& engine, std::string instance_id, const KvLayout& layout) {
  WorkerInfo worker = worker_of(engine, std::move(instance_id), layout.rank);
  worker.layout = layout;
  return worker;
}

Result<ServerSettings> settings_of_worker(ServerSettings settings, const std::string& base_host, uint16_t base,
                                          const ParallelRank& rank) {
  http::Url url;
  url.host = base_host;
  url.port = base;
  url.secure = !settings.ca_file.empty();
  settings.base_url = url.to_string();
  settings.port = 0;
  if (rank.pp_rank == 0) {
    KVF_ASSIGN_OR_RETURN(settings.port, port_of_worker(base, rank.dp_rank, rank.tp_size, rank.tp_rank));
  }
  settings.keeps_directory = settings.port == base;
  return settings;
}

}  // namespace kvferry::bootstrap
