#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "engine/fabric/fabric.h"
#include "engine/memory/registry.h"
#include "engine/plan/coalesce.h"

namespace kvferry::loopback {

// Engines of one process that reach each other's memory directly: for tests and the simulator, where it stands for
// every one-sided fabric. Given to the engines by their configs; nobody finds it otherwise. Thread-safe.
class Hub {
 public:
  // `span_delay`: virtual time between two spans of one job, so that an owner can act in the middle of a read.
  explicit Hub(Duration span_delay = Duration(0)) : span_delay_(span_delay) {}

  void add(const std::string& engine_id, uint64_t incarnation, const Registry& registry, const GateWords& words);
  // When this returns, nobody copies from or to that engine's regions by this hub any more.
  void remove(const std::string& engine_id, uint64_t incarnation);
  bool has(const std::string& engine_id, uint64_t incarnation) const;

  // Copies one span behind all checks that the owner would make, and returns when it has landed; the memory of the peer
  // may be of any kind. `needed`: Permission.
  Status copy(const std::string& engine_id, uint64_t incarnation, Operation operation, const Pair& pair,
              uint32_t needed) const;
  bool in_force(const std::string& engine_id, uint64_t incarnation, WordIndex word, uint64_t generation) const;
  Duration span_delay() const { return span_delay_; }

 private:
  struct Member {
    const Registry* registry;
    const GateWords* words;
  };
  const Duration span_delay_;
  mutable std::mutex mutex_;  // held while a span is copied: remove() waits for it
  std::map<std::pair<std::string, uint64_t>, Member> members_;
};

// One engine's way to another of the same hub. On loop only.
class LoopbackPath final : public OneSidedPath {
 public:
  LoopbackPath(Loop& loop, std::shared_ptr<const Hub> hub, std::string engine_id, uint64_t incarnation)
      : loop_(loop), hub_(std::move(hub)), engine_id_(std::move(engine_id)), incarnation_(incarnation) {}

  const char* fabric() const override { return "loopback"; }
  void start(std::shared_ptr<Job> job) override;
  bool cancel(const std::shared_ptr<Job>& job, Task far_quiet) override;
  std::optional<bool> in_force(WordIndex word, uint64_t generation) const override;
  bool reaches(const RegionInfo& region) const override { return region.word != kNoWord; }
  std::string describe() const override { return "the same process"; }

 private:
  struct Running {
    std::shared_ptr<Job> job;
    Chunker chunker;
  };
  void step(const std::shared_ptr<Running>& running);
  void finish(const std::shared_ptr<Running>& running, Status status);

  Loop& loop_;
  const std::shared_ptr<const Hub> hub_;
  const std::string engine_id_;
  const uint64_t incarnation_;
  std::unordered_map<const Job*, std::shared_ptr<Running>> jobs_;  // nobody else keeps one for longer than a step
};

}  // namespace kvferry::loopback
