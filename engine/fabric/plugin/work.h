#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "engine/fabric/fabric.h"
#include "engine/fabric/plugin/node.h"

namespace kvferry::plugin {

// Part of one pair of a job.
struct Piece {
  size_t pair = 0;
  uint64_t offset = 0;
  uint64_t length = 0;
  bool last = false;  // of its pair
};

// One job under way.
struct Work {
  std::shared_ptr<Job> job;
  size_t pair = 0;  // the next piece begins here
  uint64_t offset = 0;
  std::vector<Piece> again;  // their connection broke
  size_t in_flight = 0;
  int breaks = 0;
  bool queued = false;
  bool exposed = false;     // of a write: something was posted that no flush has confirmed
  bool confirming = false;  // a flush is under way for it
  bool ended = false;       // done, cancelled: whoever still speaks of it is not heard
  Status failure;
  std::vector<Task> when_over;  // those who wait for it to leave a region

  bool writes() const { return job->operation == Operation::write; }
  bool has_pieces() const { return failure.ok() && (!again.empty() || pair < job->pairs.size()); }
  // REQUIRES: has_pieces().
  Piece take(uint64_t most) {
    if (!again.empty()) {
      const Piece piece = again.back();
      again.pop_back();
      return piece;
    }
    const uint64_t whole = job->pairs[pair].length;
    Piece piece{pair, offset, std::min(most, whole - offset), false};
    offset += piece.length;
    piece.last = offset == whole;
    if (piece.last) {
      ++pair;
      offset = 0;
    }
    return piece;
  }
};
using WorkPtr = std::shared_ptr<Work>;

// I8, I4: what a read has brought into memory of a device is visible there, and lands no later. `pins`: those of
// the job, or what was kept of them. REQUIRES: nothing of it is in flight.
Status settle_writes(const Job& job, std::span<const RegionPin> pins);

// The pairs of a write of which a byte is read back: the last, and one of each region that lies on a device, since
// which GPU that is only the owner knows.
std::vector<size_t> to_read_back(const Job& job);

class InFlight;

// A get or put that the plug-in has; it owns itself until its end is told.
class PieceOperation final : public Posted {
 public:
  using Ended = std::function<void(std::unique_ptr<PieceOperation>, int32_t, const std::string&)>;
  PieceOperation(InFlight& all, WorkPtr work, Piece piece);
  ~PieceOperation() override;
  void ended(int32_t result, const std::string& why) override;
  // What the plug-in calls it by.
  uint64_t token() { return reinterpret_cast<uint64_t>(static_cast<Posted*>(this)); }
  // Nobody waits for it any more, and the plug-in still has it: the local memory stays pinned until its end.
  void orphan();

  const WorkPtr& work() const { return work_; }
  const Piece& piece() const { return piece_; }

 private:
  InFlight* all_;
  const WorkPtr work_;
  const Piece piece_;
  std::vector<RegionPin> pins_;
};

// The operations of one path that the plug-in has.
class InFlight {
 public:
  explicit InFlight(PieceOperation::Ended ended) : ended_(std::move(ended)) {}
  ~InFlight() { orphan_all(); }

  size_t count() const { return operations_.size(); }
  uint64_t bytes() const { return bytes_; }
  void orphan_all();
  // What the plug-in calls those of `work` by.
  std::vector<uint64_t> tokens_of(const WorkPtr& work) const;
  // Those that have something in flight, one or more times each.
  template <class Each>
  void each_work(Each each) const {
    for (const PieceOperation* operation : operations_) each(operation->work());
  }

 private:
  friend class PieceOperation;
  const PieceOperation::Ended ended_;
  std::unordered_set<PieceOperation*> operations_;
  uint64_t bytes_ = 0;
};

// A flush or a read-back: calls once and deletes itself.
class Question final : public Posted {
 public:
  using Answer = std::function<void(int32_t result, const std::string& why)>;
  explicit Question(Answer answer) : answer_(std::move(answer)) {}
  void ended(int32_t result, const std::string& why) override {
    const std::unique_ptr<Question> self(this);
    answer_(result, why);
  }

 private:
  const Answer answer_;
};

}  // namespace kvferry::plugin
