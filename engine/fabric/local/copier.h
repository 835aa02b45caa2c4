#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "engine/fabric/fabric.h"
#include "engine/fabric/local/attach.h"
#include "engine/plan/coalesce.h"

namespace kvferry::local {

// One job being copied over a Link, slice by slice, by as many threads as care to: the caller's own, the copy threads,
// and whoever waits for it.
class Copy {
 public:
  using Done = std::function<void(Status)>;  // once, from whichever thread finished; not when cancelled

  Copy(std::shared_ptr<Job> job, std::shared_ptr<Link> link, const Clock& clock, Done done);

  // Takes part until no slice is left. Returns when this thread has nothing more to do here.
  void help();
  // I4: when this returns, no thread copies for this job any more, and `done` will not be called; false: it was.
  bool cancel();
  const Job& job() const { return *job_; }

 private:
  Status copy_slice(const Chunk& slice);
  void record(Status status);

  const std::shared_ptr<Job> job_;
  const std::shared_ptr<Link> link_;
  const Clock& clock_;
  Done done_;
  std::vector<Chunk> slices_;
  std::atomic<size_t> next_{0};
  std::atomic<size_t> active_{0};
  std::atomic<bool> ended_{false};
  std::atomic<bool> stop_{false};  // leave at the next slice, for good
  std::mutex mutex_;
  Status status_;  // GUARDED_BY(mutex_): of the first slice that failed
};

// A few threads for copies that are worth more than one core. Thread-safe.
class Copier {
 public:
  explicit Copier(size_t threads);
  ~Copier();

  // Small enough to be faster in the calling thread than handed over.
  static constexpr uint64_t kInlineBytes = uint64_t{1} << 20;

  void enqueue(std::shared_ptr<Copy> copy);

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Copy>> queue_;  // GUARDED_BY(mutex_)
  bool stopping_ = false;                    // GUARDED_BY(mutex_)
  std::vector<std::thread> threads_;
};

// The local fabric for jobs that had to wait for their session: on loop, copied by the copy threads.
class LocalPath final : public OneSidedPath {
 public:
  // `post` brings a task onto the loop from any thread.
  LocalPath(std::shared_ptr<Link> link, Copier& copier, const Clock& clock, std::function<void(Task)> post)
      : link_(std::move(link)), copier_(copier), clock_(clock), post_(std::move(post)) {}
  ~LocalPath() override;

  const char* fabric() const override { return "local"; }
  void start(std::shared_ptr<Job> job) override;
  bool cancel(const std::shared_ptr<Job>& job, Task far_quiet) override;
  std::optional<bool> in_force(WordIndex word, uint64_t generation) const override {
    return link_->in_force(word, generation);
  }
  bool reaches(const RegionInfo& region) const override {
    return region.kind == MemoryKind::host && region.word != kNoWord;
  }
  bool reaches_directly(MemoryOps& local, std::span<const RegionPin> pins, const RegionInfo& region) const override;
  std::string describe() const override { return "process_vm_readv and process_vm_writev"; }

 private:
  const std::shared_ptr<Link> link_;
  Copier& copier_;
  const Clock& clock_;
  const std::function<void(Task)> post_;
  std::unordered_map<const Job*, std::shared_ptr<Copy>> copies_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // posted tasks outlive the path
};

}  // namespace kvferry::local
