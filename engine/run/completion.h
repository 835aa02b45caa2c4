#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "common/fd.h"
#include "engine/types.h"

namespace kvferry {

using TransferId = uint64_t;
// Stands in take() for "a quarantined range is quiet again".
constexpr TransferId kQuietAgain = 0;
// Stands in take() for "a parcel was released".
constexpr TransferId kParcelReleased = UINT64_MAX;

// Where the ends of an engine's transfers are told: to waiters, and on a descriptor for event loops. Thread-safe.
class CompletionHub {
 public:
  // `transfer_ended` runs in whichever thread ended a transfer.
  explicit CompletionHub(std::function<void()> transfer_ended) : transfer_ended_(std::move(transfer_ended)) {}

  // From the first call on, ended transfers are queued for take(); other news that nobody has taken is there from the
  // start. Readable while the queue is not empty.
  Result<int> fd();
  std::vector<TransferId> take();
  // Ended and not taken; 0 as long as nobody asked for the descriptor.
  size_t untaken() const { return untaken_.load(std::memory_order_relaxed); }

  void ended(TransferId id);
  // Puts news before take() that is no transfer's end; each kind once until somebody has asked for the descriptor.
  void tell(TransferId news);

 private:
  void queue(TransferId id);  // REQUIRES: mutex_

  const std::function<void()> transfer_ended_;
  std::mutex mutex_;
  std::optional<EventFd> event_;     // GUARDED_BY(mutex_)
  std::deque<TransferId> finished_;  // GUARDED_BY(mutex_); submissions are refused at max_transfers of them (I6)
  std::atomic<size_t> untaken_{0};   // its size
};

// The end of one transfer, from whichever thread brings it about. Thread-safe.
class Completion {
 public:
  using Callback = std::function<void(const Outcome&)>;

  bool done() const { return done_.load(std::memory_order_acquire); }
  const std::atomic<bool>& flag() const { return done_; }
  // REQUIRES: done().
  const Outcome& outcome() const { return *outcome_; }

  // False: it has ended before; the outcome stays as it is. Else the caller must run the callbacks, on the loop.
  bool finish(Outcome outcome);
  std::vector<Callback> take_callbacks();
  // False when it is done already: the caller calls back itself.
  bool add_callback(Callback callback);

 private:
  std::mutex mutex_;
  std::optional<Outcome> outcome_;   // written once, before done_
  std::vector<Callback> callbacks_;  // GUARDED_BY(mutex_)
  std::atomic<bool> done_{false};
};

}  // namespace kvferry
