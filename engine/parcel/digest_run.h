#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/memory/staging.h"
#include "engine/parcel/cache_walk.h"
#include "engine/parcel/digest.h"

namespace kvferry {

// The digest of memory of one kind, a slice a turn of the loop (I7); what the CPU cannot touch passes through staging
// memory. On loop only.
class DigestRun : public std::enable_shared_from_this<DigestRun> {
 public:
  using Done = std::function<void(Result<uint64_t>)>;

  // The memory stays registered until `done` or stop(). `done` may be called before this returns.
  static std::shared_ptr<DigestRun> start(Loop& loop, Staging& staging, MemoryOps& ops, CacheWalk bytes, Done done);
  // Nothing is read any more when this returns (I2), and `done` is not called.
  void stop();
  bool over() const { return over_; }

 private:
  DigestRun(Loop& loop, Staging& staging, MemoryOps& ops, CacheWalk bytes, Done done)
      : loop_(loop), staging_(staging), ops_(ops), bytes_(std::move(bytes)), done_(std::move(done)) {}
  void step();
  void step_staged();
  void finish(Result<uint64_t> result);

  Loop& loop_;
  Staging& staging_;
  MemoryOps& ops_;
  CacheWalk bytes_;
  Done done_;
  bool copying_ = false;
  bool over_ = false;
  Digest digest_;
};

}  // namespace kvferry
