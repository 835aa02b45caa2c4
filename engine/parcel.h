#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/parcel/layout.h"
#include "engine/parcel/parcel_types.h"
#include "engine/parcel/states.h"

// Parcels: KV that is right or refused, and never pinned. A prefiller publishes the blocks of a finished prompt under a
// transfer id and a lease; the ranks of one decoder claim them, read them over whatever fabric there is, and learn
// whether what they read is still what was published (DESIGN.md, I1 and I2). Thread-safe; no call throws.

namespace kvferry {

namespace detail {
struct ParcelReadHandle;
}

// One rank's share of one parcel: where it is, who reads, and where it goes.
struct ParcelReadRequest {
  std::string transfer_id;
  std::string expected_instance_id;  // of the owner; empty: whoever is there
  std::vector<PeerRef> owners;       // the owner ranks that this rank settles with (owners_to_settle), in any order
  std::string group_instance_id;     // of the reader's own instance
  std::string fingerprint;           // must be the owner's, byte for byte
  std::vector<BlockList> blocks;     // where the tokens go, by KV group of this engine's cache
  uint32_t first_token = 0;          // what lies before is here already
  uint32_t end_token = 0;            // 0: all that the parcel covers
  bool more = false;                 // this instance will claim the parcel again
  // An event of the cache's memory kind (engine/memory/memory_kind.h), behind what still uses the blocks: the read
  // begins once it is done. It lives until the outcome. 0: none.
  EventId event = 0;
  Duration timeout = std::chrono::seconds(30);
};

// How a read ended. The blocks hold the parcel if and only if `state` is accepted; in every other case they must not be
// used. They are quiet in all of them (I4).
struct ParcelReadOutcome {
  ReadState state = ReadState::failed;
  Status status;
  uint64_t bytes = 0;
  uint64_t tokens = 0;
  std::string fabric;
};

// A read under way. Cheap to copy; dropping it does not cancel.
class KVFERRY_API ParcelReading {
 public:
  ParcelReading() = default;
  bool done() const;
  std::optional<ParcelReadOutcome> poll() const;
  // By the request's timeout (I3). Must not be called in a callback.
  ParcelReadOutcome wait() const;
  // As wait(), but gives up waiting, not the read, after `patience`.
  std::optional<ParcelReadOutcome> wait_for(Duration patience) const;
  // Once, on the engine's loop, or here when it is done already. Must not block.
  void on_done(std::function<void(const ParcelReadOutcome&)> callback) const;
  // When this returns the blocks are quiet and the outcome is there.
  void cancel() const;
  // Stands in Engine::take_completed() when it has ended.
  uint64_t id() const;

 private:
  friend class Parcels;
  std::shared_ptr<detail::ParcelReadHandle> handle_;
};

// The parcels of one engine, which it must not outlive.
class KVFERRY_API Parcels {
 public:
  explicit Parcels(Engine& engine);

  // How this rank's KV cache lies in regions of this engine. Once, before anything else.
  Status set_cache(std::string instance_id, KvLayout layout);

  // ---- as owner
  Status announce(const std::string& transfer_id, Duration lease = std::chrono::seconds(480));
  void withdraw(const std::string& transfer_id);
  // From here until take_released() names it, the blocks belong to the parcel. An Error: they never did.
  Status publish(ParcelSpec spec);
  // Idempotent. Forced: readers in the middle learn `stale`, the blocks are free when this returns. Not forced: after
  // the last live claim; then the answer is false.
  bool release(const std::string& transfer_id, bool force);
  std::optional<ParcelStatus> status(const std::string& transfer_id) const;
  // The same without waiting, for threads that serve others: `done` is called once, on the engine's loop, or here when
  // the engine has ended. It must not block.
  void release(const std::string& transfer_id, bool force, std::function<void(ReleaseAnswer)> done);
  void status(const std::string& transfer_id, std::function<void(std::optional<ParcelStatus>)> done) const;
  std::vector<ParcelReleased> take_released();

  // ---- as reader
  Result<ParcelReading> read(ParcelReadRequest request);
  // Reads and waits: cheaper than the two calls. Must not be called in a callback.
  ParcelReadOutcome read_and_wait(ParcelReadRequest request);
  // Tells an owner that nobody of this group will read the parcel.
  void release_at(const PeerRef& owner, const std::string& transfer_id, bool force,
                  Duration timeout = std::chrono::seconds(30));

 private:
  Result<ParcelReading> start(ParcelReadRequest request, bool waiter_follows);

  std::shared_ptr<detail::EngineState> engine_;
  std::shared_ptr<const KvLayout> layout_;
};

}  // namespace kvferry
