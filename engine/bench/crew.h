#pragma once

#include <barrier>
#include <functional>
#include <thread>
#include <vector>

namespace kvferry::bench {

// A few threads that do the same thing at the same time, again and again; the caller is the first of them.
class Crew {
 public:
  explicit Crew(int threads) : barrier_(threads) {
    for (int i = 1; i < threads; ++i) threads_.emplace_back([this, i] { follow(i); });
  }
  ~Crew() {
    task_ = nullptr;
    if (!threads_.empty()) barrier_.arrive_and_wait();
    for (std::thread& thread : threads_) thread.join();
  }
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // Runs `task(thread)` in all of them; returns when all are done.
  void run(const std::function<void(int)>& task) {
    if (threads_.empty()) return task(0);
    task_ = &task;
    barrier_.arrive_and_wait();
    task(0);
    barrier_.arrive_and_wait();
  }

 private:
  void follow(int thread) {
    while (true) {
      barrier_.arrive_and_wait();
      if (task_ == nullptr) return;
      (*task_)(thread);
      barrier_.arrive_and_wait();
    }
  }

  std::barrier<> barrier_;
  const std::function<void(int)>* task_ = nullptr;  // written between two arrivals
  std::vector<std::thread> threads_;
};

}  // namespace kvferry::bench
