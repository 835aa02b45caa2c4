#include "engine/run/driver.h"

#include <algorithm>

namespace kvferry {

Result<std::unique_ptr<LoopDriver>> LoopDriver::create(EpollLoop& loop) {
  KVF_ASSIGN_OR_RETURN(EventFd wake, EventFd::create());
  std::unique_ptr<LoopDriver> driver(new LoopDriver(loop, std::move(wake)));
  KVF_RETURN_IF_ERROR(loop.watch(driver->wake_.fd(), EPOLLIN, driver.get()));
  driver->progress_ = std::thread([raw = driver.get()] { raw->run_progress(); });
  return driver;
}

LoopDriver::~LoopDriver() {
  stop();
  loop_.unwatch(wake_.fd());
}

void LoopDriver::stop() {
  if (!progress_.joinable()) return;
  stopping_.store(true);
  {
    const std::lock_guard lock(mutex_);
    urgent_ = true;
  }
  progress_cv_.notify_all();
  wake_.signal();
  progress_.join();
}

void LoopDriver::post(Task task, bool waiter_follows) {
  {
    const std::lock_guard lock(inbox_mutex_);
    inbox_.push_back(std::move(task));
    inbox_size_.store(inbox_.size(), std::memory_order_seq_cst);
  }
  attention_.store(1, std::memory_order_seq_cst);
  if (owned_here()) return;  // this very turn, or the next
  if (loop_.waiting()) return wake_.signal();
  if (waiter_follows) return;
  const std::lock_guard lock(mutex_);
  if (!owned_ && waiters_ == 0) {
    urgent_ = true;
    progress_cv_.notify_one();
  }
}

void LoopDriver::run_posted() {
  if (attention_.load(std::memory_order_relaxed) == 0) return;
  // What is posted from here on raises it again. What stood before the 1 that is taken back is seen from here on.
  attention_.exchange(0, std::memory_order_seq_cst);
  std::deque<Task> batch;
  {
    const std::lock_guard lock(inbox_mutex_);
    batch.swap(inbox_);
    inbox_size_.store(0, std::memory_order_seq_cst);
  }
  for (Task& task : batch) task();
}

void LoopDriver::turn(TimePoint deadline) {
  loop_.run_once(deadline, attention_);
  turned_ = loop_.now();
}

// REQUIRES: the lock is held and nobody owns the loop. With `done`: until it is true or `deadline` has passed; without:
// until somebody waits.
void LoopDriver::drive(std::unique_lock<std::mutex>& lock, const std::atomic<bool>* done, TimePoint deadline) {
  owned_ = true;
  owner_.store(std::this_thread::get_id(), std::memory_order_relaxed);
  lock.unlock();
  while (true) {
    run_posted();
    if (done != nullptr) {
      const TimePoint now = loop_.now();
      if (done->load(std::memory_order_acquire) || now >= deadline) {
        // Calls whose tasks end at once may follow each other for ever: timers and descriptors get their turn.
        if (now - turned_ >= kShortestPark) turn(now);
        break;
      }
    } else if (stopping_.load() || waiting_.load(std::memory_order_seq_cst) > 0) {
      break;
    }
    turn(deadline);
  }
  owner_.store(std::thread::id(), std::memory_order_relaxed);
  lock.lock();
  owned_ = false;
}

void LoopDriver::wait(const std::atomic<bool>& done, TimePoint deadline) {
  if (done.load(std::memory_order_acquire)) return;
  KVF_CHECK(!owned_here());
  const TimePoint began = loop_.now();
  std::unique_lock lock(mutex_);
  const bool follows_closely = began - left_ < kLongestPark;
  ++waiters_;
  ++waits_;
  waiting_.store(waiters_, std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // as in wake_waiters(): one of the two sees the other
  if (owned_ && loop_.waiting()) wake_.signal();
  while (!done.load(std::memory_order_acquire) && loop_.now() < deadline) {
    if (!owned_)
      drive(lock, &done, deadline);
    else if (deadline == kNever)
      waiters_cv_.wait(lock);
    else
      waiters_cv_.wait_until(lock, deadline);
  }
  --waiters_;
  waiting_.store(waiters_, std::memory_order_seq_cst);
  left_ = loop_.now();
  // Handing the loop over costs two thread switches, and taking it back two more: who came back soon will do so again.
  const bool lasted = left_ - began > kShortestPark && !follows_closely;
  if (waiters_ > 0) {
    waiters_cv_.notify_all();  // one of them takes the loop
  } else if (resting_ || lasted || inbox_size_.load() > 0) {
    urgent_ = true;
    progress_cv_.notify_one();
  }
}

void LoopDriver::wake_waiters() {
  std::atomic_thread_fence(std::memory_order_seq_cst);  // `done` became true before, by a store that releases
  if (waiting_.load(std::memory_order_seq_cst) == 0) return;
  {
    const std::lock_guard lock(mutex_);  // a waiter is before its check of `done`, or asleep
  }
  waiters_cv_.notify_all();
  if (owned_here()) return;
  attention_.store(1, std::memory_order_seq_cst);  // whoever drives may have looked at `done` and be about to sleep
  if (loop_.waiting()) wake_.signal();
}

void LoopDriver::run_progress() {
  std::unique_lock lock(mutex_);
  uint64_t seen = 0;
  Duration park = kShortestPark;
  while (!stopping_.load()) {
    if (waiters_ > 0 || (waits_ != seen && !urgent_)) {
      // A waiter that is still the same after a park waits for long: it says when it leaves, and no time is burned.
      if (waiters_ > 0 && waits_ == seen) {
        resting_ = true;
        progress_cv_.wait(lock, [this] { return waiters_ == 0 || stopping_.load(); });
        resting_ = false;
        continue;
      }
      seen = waits_;
      progress_cv_.wait_for(lock, waiters_ > 0 ? kLongestPark : park);
      park = std::min(park * 2, kLongestPark);
      continue;
    }
    park = kShortestPark;
    urgent_ = false;
    seen = waits_;
    drive(lock, nullptr, kNever);
    waiters_cv_.notify_all();
  }
  lock.unlock();
  run_posted();
}

}  // namespace kvferry
