#pragma once

#include <memory>

#include "engine/fabric/fabric.h"
#include "engine/parcel/digest_run.h"
#include "engine/parcel/pieced_read.h"

namespace kvferry {

// A one-sided read between memory of devices on both sides, whose digest is asked for: that of what has landed here,
// which the CPU sees through staging memory only. On loop only.
class MappedRead final : public PiecedRead, public std::enable_shared_from_this<MappedRead> {
 public:
  // `bytes`: where `whole` lands, in the order of the digest. `path` outlives this or is gone by stop().
  MappedRead(OneSidedPath& path, Loop& loop, Staging& staging, std::shared_ptr<Job> whole, CacheWalk bytes, Done done)
      : path_(path),
        loop_(loop),
        staging_(staging),
        whole_(std::move(whole)),
        bytes_(std::move(bytes)),
        done_(std::move(done)) {}

  void start() override;
  void stop(bool path_stands) override;

 private:
  void on_landed(Status status);
  void finish(Status status, uint64_t digest);

  OneSidedPath& path_;
  Loop& loop_;
  Staging& staging_;
  const std::shared_ptr<Job> whole_;
  CacheWalk bytes_;
  Done done_;
  bool landing_ = false;
  std::shared_ptr<DigestRun> run_;
};

}  // namespace kvferry
