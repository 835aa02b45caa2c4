#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "common/clock.h"
#include "engine/config.h"
#include "engine/memory/memory_kind.h"
#include "engine/parcel/layout.h"
#include "engine/run/completion.h"

namespace kvferry {

// I6: what a claim may name; answers quote it, and must fit a frame.
inline constexpr size_t kMaxParcelName = 256;  // bytes of a transfer id or an instance id
inline constexpr size_t kMaxFingerprint = 4096;
Status check_names(std::string_view transfer_id, std::string_view owner_instance, std::string_view reader_instance,
                   std::string_view fingerprint);

// What a prefiller publishes under one transfer id.
struct ParcelSpec {
  std::string transfer_id;
  std::vector<BlockList> blocks;  // by KV group of the cache's layout
  uint64_t tokens = 0;            // covered by the blocks
  std::string fingerprint;        // must be the reader's, byte for byte
  Duration lease = std::chrono::seconds(480);
  bool digest = false;
  // An event of the cache's memory kind (engine/memory/memory_kind.h): claims are answered once it is done. It lives
  // until then, or until the blocks are back. 0: none.
  EventId event = 0;
};

enum class ReleaseReason : uint8_t {
  settled,        // every reader that had to has settled
  released,       // somebody released it
  expired,        // the lease ended
  reader_failed,  // a reader failed and no other was reading
  aborted,        // it was released before it was published, or its event failed
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
// Bounded (I6): what is not taken counts as a parcel that lives.
class ParcelEvents {
 public:
  explicit ParcelEvents(CompletionHub& hub) : hub_(hub) {}
  void push(ParcelReleased released);
  std::vector<ParcelReleased> take();
  size_t untaken() const { return untaken_.load(std::memory_order_relaxed); }

 private:
  CompletionHub& hub_;
  std::mutex mutex_;
  std::deque<ParcelReleased> queue_;  // GUARDED_BY(mutex_)
  std::atomic<size_t> untaken_{0};    // its size
};

struct ParcelStatus {
  std::string_view state;
  Duration age{0};
  size_t readers = 0;  // live claims
};

}  // namespace kvferry
