#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/io/loop.h"
#include "engine/memory/region_table.h"
#include "engine/types.h"

namespace kvferry {

// A transfer on its way through a fabric. Made by run/, shared with the fabric until it is done or cancelled.
struct Job {
  Operation operation = Operation::read;
  std::vector<Pair> pairs;  // validated and coalesced
  MemoryOps* local_ops = nullptr;
  std::vector<RegionPin> pins;               // the local regions; dropped by run/ when the local side is quiet
  std::shared_ptr<void> landing;             // local memory that is no region; held while a fabric may touch it
  std::shared_ptr<const RegionTable> table;  // the peer's, as it was when the job was checked against it
  std::vector<const RegionInfo*> remote;     // into `table`, by pair
  TimePoint deadline = kNever;
  uint64_t bytes = 0;
  std::function<void(Status)> done;  // by the fabric, on loop, once, unless the job was cancelled

  // Set by the fabric: its local memory may still be touched although the job has ended. Its regions stay pinned until
  // that is over, and nothing else may be read into it meanwhile.
  bool loose = false;

  std::atomic<uint64_t> bytes_done{0};
  std::atomic<uint64_t> spans_done{0};
};

// One fabric to one peer, as the initiator drives it. On loop only.
class Path {
 public:
  virtual ~Path() = default;

  virtual const char* fabric() const = 0;
  virtual void start(std::shared_ptr<Job> job) = 0;

  // Ends a job early; `done` will not be called. When this returns, no byte moves from or to the job's local memory any
  // more (I4). True: the far side is quiet too. False: it may still take what was sent; `far_quiet` is called when the
  // peer has confirmed that it does not, or never, if the peer cannot be asked.
  virtual bool cancel(const std::shared_ptr<Job>& job, Task far_quiet) = 0;

  // For describe(): why this fabric, and its state.
  virtual std::string describe() const = 0;
};

// A fabric that reaches the peer's memory without the peer.
class OneSidedPath : public Path {
 public:
  // I1: whether the owner's word holds `generation`, behind everything that was copied before. Nothing: this fabric
  // cannot tell, and the owner must be asked.
  virtual std::optional<bool> in_force(WordIndex word, uint64_t generation) const = 0;
  // Whether it can copy between host memory and that region of the peer's.
  virtual bool reaches(const RegionInfo& region) const = 0;
  // Whether it can copy between memory of `local`, which `pins` hold, and that region, without staging memory between
  // them.
  virtual bool reaches_directly(MemoryOps& local, std::span<const RegionPin> /*pins*/, const RegionInfo& region) const {
    return local.host_addressable() && reaches(region);
  }
};

// A one-sided path of which the owner has to hear that it is through with memory before that is given back (I4).
class RevocablePath : public OneSidedPath {
 public:
  // The owner has taken regions back that `table` no longer has: jobs that use them fail, and `quiet` runs when nothing
  // of this side is under way to them any more, at the owner neither.
  virtual void retire(const std::shared_ptr<const RegionTable>& table, Task quiet) = 0;
  // Ends the connection for good. Jobs that are left wait for their cancel(). True: nothing of this side is under way
  // at the owner any more.
  virtual bool close() = 0;
};

// What an owner-executed fabric asks about the session that its lanes belong to. On loop only.
class Guest {
 public:
  virtual ~Guest() = default;
  virtual const std::string& engine_id() const = 0;
  virtual uint64_t incarnation() const = 0;
  // I4: called before each slice that is scattered into our memory. Handles what the session's socket holds first;
  // false when the peer has given up on us, or we were stopped for longer than it waits: then nothing more may be
  // applied.
  virtual bool still_welcome() = 0;
};

}  // namespace kvferry
