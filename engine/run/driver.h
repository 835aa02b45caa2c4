#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "common/fd.h"
#include "engine/io/epoll_loop.h"

namespace kvferry {

// Decides who owns the loop: the progress thread, or a thread that waits for something and drives the loop itself
// meanwhile, so that a synchronous call does not pay two thread switches. One owner at a time; everything `_on_loop`
// runs in it.
//
// The progress thread leaves the loop as soon as somebody waits, and comes back 100 us after the last waiter has left,
// at once if that one had waited longer. While synchronous calls follow each other closely it stays away for up to
// kLongestPark, however long each takes, and anything posted without a waiter brings it back at once.
class LoopDriver final : private FdHandler {
 public:
  static Result<std::unique_ptr<LoopDriver>> create(EpollLoop& loop);
  ~LoopDriver() override;

  // Runs `task` on the loop. From any thread. `waiter_follows`: the caller goes on to wait() at once, and need not have
  // the loop woken for it. What is posted is bounded by what posts (I6): one task a transfer that begins or ends, and
  // one a thread that calls.
  void post(Task task, bool waiter_follows = false);

  // Returns when `done` is true or `deadline` has passed; drives the loop meanwhile if nobody else does.
  // REQUIRES: !owned_here().
  void wait(const std::atomic<bool>& done, TimePoint deadline);
  // After some `done` has become true.
  void wake_waiters();

  bool owned_here() const { return owner_.load(std::memory_order_relaxed) == std::this_thread::get_id(); }

  // Ends the progress thread; what is still posted is run first. From here on nobody may post or wait.
  void stop();

 private:
  static constexpr Duration kShortestPark = std::chrono::microseconds(100);
  static constexpr Duration kLongestPark = std::chrono::milliseconds(2);

  LoopDriver(EpollLoop& loop, EventFd wake) : loop_(loop), wake_(std::move(wake)) {}
  void on_fd_ready(uint32_t) override { wake_.drain(); }
  void run_progress();
  void drive(std::unique_lock<std::mutex>& lock, const std::atomic<bool>* done, TimePoint deadline);
  void run_posted();
  void turn(TimePoint deadline);

  EpollLoop& loop_;
  const EventFd wake_;

  std::mutex inbox_mutex_;
  std::deque<Task> inbox_;  // GUARDED_BY(inbox_mutex_)
  std::atomic<size_t> inbox_size_{0};
  // Something was posted, or some `done` has become true: the loop does not sleep before its owner has looked.
  std::atomic<size_t> attention_{0};

  std::mutex mutex_;
  std::condition_variable waiters_cv_;
  std::condition_variable progress_cv_;
  bool owned_ = false;    // GUARDED_BY(mutex_)
  int waiters_ = 0;       // GUARDED_BY(mutex_)
  uint64_t waits_ = 0;    // GUARDED_BY(mutex_): calls of wait() so far
  TimePoint left_{};      // GUARDED_BY(mutex_): when a waiter left last
  bool urgent_ = false;   // GUARDED_BY(mutex_): something was posted and nobody owns the loop
  bool resting_ = false;  // GUARDED_BY(mutex_): the progress thread sleeps until the last waiter leaves
  TimePoint turned_{};    // when the loop had its last turn; only its owner may touch it
  std::atomic<bool> stopping_{false};
  std::atomic<int> waiting_{0};  // waiters_, for readers without the lock
  std::atomic<std::thread::id> owner_{};
  std::thread progress_;
};

}  // namespace kvferry
