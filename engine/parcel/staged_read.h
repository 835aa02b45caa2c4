#pragma once

#include <memory>
#include <optional>

#include "engine/fabric/fabric.h"
#include "engine/memory/staging.h"
#include "engine/parcel/digest.h"
#include "engine/parcel/pieced_read.h"
#include "engine/plan/coalesce.h"

namespace kvferry {

// A one-sided read into memory that the CPU cannot touch: a piece after the other through a staging buffer. Its digest
// is that of the bytes as they came. On loop only.
class StagedRead final : public PiecedRead, public std::enable_shared_from_this<StagedRead> {
 public:
  // `whole`: as for a fabric, but its local places are in memory of `ops`. `path` outlives this or is gone by stop().
  StagedRead(OneSidedPath& path, Staging& staging, MemoryOps& ops, std::shared_ptr<Job> whole, bool digest, Done done);

  void start() override { next(); }
  void stop(bool path_stands) override;

 private:
  void next();
  void fetch(const Chunk& chunk, Staging::Buffer buffer);
  void land(const Chunk& chunk);
  void let_go();
  void finish(Status status);

  OneSidedPath& path_;
  Staging& staging_;
  MemoryOps& ops_;
  const std::shared_ptr<Job> whole_;
  Chunker chunker_;
  std::optional<Digest> digest_;
  Done done_;
  std::shared_ptr<Job> piece_;  // being read
  std::shared_ptr<Staging::Buffer> buffer_;
  bool copying_ = false;
  bool over_ = false;
};

}  // namespace kvferry
