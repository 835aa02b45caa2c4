#pragma once

#include <deque>
#include <map>
#include <memory>
#include <utility>

#include "engine/io/loop.h"

namespace kvferry {

// Work that takes its time and that peers can ask for: what is asked in one turn of the loop beyond `slice` waits for
// the next ones, where those who asked get theirs one by one (I7). How much may wait is the caller's to bound. On loop
// only.
template <class Key>
class FairTurns {
 public:
  FairTurns(Loop& loop, Duration slice) : loop_(loop), slice_(slice) {}
  ~FairTurns() { *alive_ = false; }
  FairTurns(const FairTurns&) = delete;
  FairTurns& operator=(const FairTurns&) = delete;

  // At once where nothing waits and the slice is not used up.
  void run(const Key& who, Task task) {
    if (waiting_.empty() && spent_ < slice_) return spend(task);
    std::deque<Task>& queue = waiting_[who];
    if (queue.empty()) order_.push_back(who);
    queue.push_back(std::move(task));
  }
  size_t waiting() const {
    size_t out = 0;
    for (const auto& [who, queue] : waiting_) out += queue.size();
    return out;
  }

 private:
  void spend(const Task& task) {
    plan();
    const TimePoint began = loop_.now();
    const std::shared_ptr<bool> alive = alive_;
    task();
    if (*alive) spent_ += loop_.now() - began;
  }
  void plan() {
    if (std::exchange(planned_, true)) return;
    loop_.defer([this, alive = alive_] {
      if (!*alive) return;
      planned_ = false;
      spent_ = Duration(0);
      go_on();
    });
  }
  void go_on() {
    const std::shared_ptr<bool> alive = alive_;
    while (*alive && !order_.empty() && spent_ < slice_) {
      const Key who = std::move(order_.front());
      order_.pop_front();
      const auto entry = waiting_.find(who);
      const Task task = std::move(entry->second.front());
      entry->second.pop_front();
      if (entry->second.empty())
        waiting_.erase(entry);
      else
        order_.push_back(who);
      spend(task);
    }
  }

  Loop& loop_;
  const Duration slice_;
  Duration spent_{0};  // in this turn
  bool planned_ = false;
  std::map<Key, std::deque<Task>> waiting_;
  std::deque<Key> order_;  // of those who wait
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvferry
