#pragma once

#include <sys/epoll.h>

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/fd.h"
#include "engine/io/loop.h"

namespace kvferry {

class FdHandler {
 public:
  virtual ~FdHandler() = default;
  virtual void on_fd_ready(uint32_t events) = 0;
};

// The production Loop. Whoever calls run_once() owns the loop meanwhile; LoopDriver (run/driver.h) sees to it that
// there is one owner at a time.
class EpollLoop final : public Loop {
 public:
  static Result<std::unique_ptr<EpollLoop>> create(std::shared_ptr<Clock> clock);

  TimePoint now() const override { return clock_->now(); }
  TimerId call_at(TimePoint when, Task task) override;
  void cancel_timer(TimerId id) override;
  void defer(Task task) override;
  void before_sleep(Task task) override;

  // Level-triggered; one watch per descriptor; `handler` must outlive it.
  Status watch(int fd, uint32_t events, FdHandler* handler);
  void modify(int fd, uint32_t events);
  void unwatch(int fd);

  // One turn: waits at most until `deadline` for events or timers, handles what is due. Deferred tasks cut the wait,
  // and so does `pending` != 0: it is read after waiting() has become true, so that whoever raises it and then sees no
  // waiting() need not wake the loop.
  void run_once(TimePoint deadline, const std::atomic<size_t>& pending);
  // Thread-safe: whether the owner is (about to be) asleep in the kernel.
  bool waiting() const { return waiting_.load(std::memory_order_seq_cst); }

 private:
  struct Watch {
    FdHandler* handler;
    uint64_t serial;  // tells a new watch on a reused descriptor from the one an event was queued for
  };
  EpollLoop(std::shared_ptr<Clock> clock, UniqueFd epoll) : clock_(std::move(clock)), epoll_(std::move(epoll)) {}
  void run_timers();
  static void run_all(std::vector<Task>& tasks);
  Duration longest_wait(TimePoint deadline, TimePoint from) const;

  const std::shared_ptr<Clock> clock_;
  UniqueFd epoll_;
  std::unordered_map<int, Watch> watches_;
  uint64_t next_serial_ = 1;
  std::map<std::pair<TimePoint, TimerId>, Task> timers_;
  std::unordered_map<TimerId, TimePoint> timer_times_;
  TimerId next_timer_ = 1;
  std::atomic<bool> waiting_{false};
  std::vector<Task> deferred_;
  std::vector<Task> before_sleep_;
};

}  // namespace kvferry
