#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "common/clock.h"

namespace kvferry::bootstrap {

struct ParcelReport {
  std::string state;  // announced, published, claimed, released, expired, aborted
  Duration age{0};    // since it was announced or published
  uint32_t readers = 0;
};

// How far a release got. `pending`: it takes effect after the last live claim. `unknown`: there is no such parcel here,
// and a later publish of this id will be refused.
enum class ReleaseState { acknowledged, pending, unknown };

// What a worker's server may do with the parcels that its engine owns. Calls come from the server's thread, must not
// block, and must be safe against the engine's own threads. `done` is called once, from any thread, perhaps before the
// call returns; it may come after the server has ended. Must outlive the server.
class ParcelControl {
 public:
  virtual ~ParcelControl() = default;

  // Nothing: no such parcel.
  virtual void state(const std::string& transfer_id, std::function<void(std::optional<ParcelReport>)> done) = 0;

  // Idempotent. `force`: the generation moves now, readers get `stale`.
  virtual void release(const std::string& transfer_id, bool force, std::function<void(ReleaseState)> done) = 0;
};

}  // namespace kvferry::bootstrap
