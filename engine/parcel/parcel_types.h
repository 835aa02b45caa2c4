#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "common/clock.h"
#include "engine/parcel/layout.h"
#include "engine/run/completion.h"

namespace kvferry {

// What a prefiller publishes under one transfer id.
struct ParcelSpec {
  std::string transfer_id;
  std::vector<BlockList> blocks;  // by KV group of the cache's layout
  uint64_t tokens = 0;            // covered by the blocks
  std::string fingerprint;        // must be the reader's, byte for byte
  Duration lease = std::chrono::seconds(480);
  bool digest = false;
};

enum class ReleaseReason : uint8_t {
  settled,        // every reader that had to has settled
  released,       // somebody released it
  expired,        // the lease ended
  reader_failed,  // a reader failed and no other was reading
  aborted,        // it was released before it was published
  shut_down,
};
std::string_view to_string(ReleaseReason reason);

// How far a release got. `unknown`: nobody has heard of this id here, and a later publish of it will be refused.
enum class ReleaseAnswer : uint8_t { done, waits_for_readers, unknown };

// The blocks of this parcel belong to the caller again. Once a parcel that was published.
struct ParcelReleased {
  std::string transfer_id;
  ReleaseReason why;
};

// What the owner's caller takes; the engine's completion descriptor is readable while something is here. Thread-safe.
// Bounded by the parcels that live (I6).
class ParcelEvents {
 public:
  explicit ParcelEvents(CompletionHub& hub) : hub_(hub) {}
  void push(ParcelReleased released);
  std::vector<ParcelReleased> take();

 private:
  CompletionHub& hub_;
  std::mutex mutex_;
  std::deque<ParcelReleased> queue_;  // GUARDED_BY(mutex_)
};

// I6, DESIGN.md. About 1 KiB and 4 bytes a block id for a parcel; a full table refuses with `resource_exhausted`.
struct ParcelLimits {
  size_t parcels = 200'000;
  size_t claims_per_parcel = 4096;
  size_t waiting_per_reader = 4096;
  size_t spans_per_claim = size_t{1} << 20;
  size_t kept_verdicts = 65'536;
  size_t tombstones = 200'000;
  Duration unknown_grace = std::chrono::seconds(30);  // a claim for an id that nobody announced
  Duration reader_grace = std::chrono::seconds(5);    // a reader without a session
  Duration verdict_life = std::chrono::seconds(120);  // the longest settle deadline
  Duration longest_lease = std::chrono::hours(1);     // with extensions, from publish on
};

struct ParcelStatus {
  std::string_view state;
  Duration age{0};
  size_t readers = 0;  // live claims
};

}  // namespace kvferry
