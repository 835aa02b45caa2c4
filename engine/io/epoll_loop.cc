#include "engine/io/epoll_loop.h"

#include <algorithm>
#include <cerrno>

namespace kvferry {
namespace {

constexpr size_t kEventsPerTurn = 64;

// The descriptor and the low half of the serial share epoll's 64 bits.
uint64_t tag(int fd, uint64_t serial) {
  return (serial << 32) | static_cast<uint32_t>(fd);
}

}  // namespace

Result<std::unique_ptr<EpollLoop>> EpollLoop::create(std::shared_ptr<Clock> clock) {
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll) return errno_error("cannot create an epoll set");
  return std::unique_ptr<EpollLoop>(new EpollLoop(std::move(clock), std::move(epoll)));
}

Loop::TimerId EpollLoop::call_at(TimePoint when, Task task) {
  const TimerId id = next_timer_++;
  timers_.emplace(std::pair{when, id}, std::move(task));
  timer_times_.emplace(id, when);
  return id;
}

void EpollLoop::cancel_timer(TimerId id) {
  const auto found = timer_times_.find(id);
  if (found == timer_times_.end()) return;
  timers_.erase({found->second, id});
  timer_times_.erase(found);
}

void EpollLoop::defer(Task task) {
  deferred_.push_back(std::move(task));
}

void EpollLoop::before_sleep(Task task) {
  before_sleep_.push_back(std::move(task));
}

Status EpollLoop::watch(int fd, uint32_t events, FdHandler* handler) {
  const uint64_t serial = next_serial_++;
  epoll_event event{};
  event.events = events;
  event.data.u64 = tag(fd, serial);
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) return errno_error("cannot watch a descriptor");
  watches_[fd] = Watch{handler, serial};
  return {};
}

void EpollLoop::modify(int fd, uint32_t events) {
  const auto found = watches_.find(fd);
  if (found == watches_.end()) return;
  epoll_event event{};
  event.events = events;
  event.data.u64 = tag(fd, found->second.serial);
  KVF_CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) == 0);
}

void EpollLoop::unwatch(int fd) {
  if (watches_.erase(fd) == 0) return;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

Duration EpollLoop::longest_wait(TimePoint deadline, TimePoint from) const {
  if (!deferred_.empty()) return Duration(0);
  TimePoint until = deadline;
  if (!timers_.empty()) until = std::min(until, timers_.begin()->first.first);
  constexpr Duration kLongest = std::chrono::minutes(1);
  return until <= from ? Duration(0) : std::min<Duration>(until - from, kLongest);
}

void EpollLoop::run_once(TimePoint deadline, const std::atomic<size_t>& pending) {
  const bool ran = !before_sleep_.empty();
  run_all(before_sleep_);
  waiting_.store(true, std::memory_order_seq_cst);
  const bool work = pending.load(std::memory_order_seq_cst) != 0;
  // What was put off may have been what a driver waits for (run/driver.h): it looks before the loop sleeps.
  const Duration wait = work || ran ? Duration(0) : longest_wait(deadline, now());
  std::array<epoll_event, kEventsPerTurn> events;
  const timespec timeout{wait.count() / 1'000'000'000, wait.count() % 1'000'000'000};
  const int ready = ::epoll_pwait2(epoll_.get(), events.data(), kEventsPerTurn, &timeout, nullptr);
  waiting_.store(false, std::memory_order_seq_cst);
  KVF_CHECK(ready >= 0 || errno == EINTR);
  for (int i = 0; i < ready; ++i) {
    const epoll_event& event = events[static_cast<size_t>(i)];
    const auto fd = static_cast<int>(static_cast<uint32_t>(event.data.u64));
    const auto found = watches_.find(fd);
    if (found == watches_.end() || tag(fd, found->second.serial) != event.data.u64) continue;
    found->second.handler->on_fd_ready(event.events);
  }
  run_timers();
  run_all(deferred_);
}

void EpollLoop::run_timers() {
  const TimePoint due = now();
  while (!timers_.empty() && timers_.begin()->first.first <= due) {
    auto timer = timers_.extract(timers_.begin());
    timer_times_.erase(timer.key().second);
    timer.mapped()();
  }
}

void EpollLoop::run_all(std::vector<Task>& tasks) {
  if (tasks.empty()) return;
  std::vector<Task> batch;
  batch.swap(tasks);
  for (Task& task : batch) task();
}

}  // namespace kvferry
