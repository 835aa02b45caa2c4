#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "engine/fabric/fabric.h"
#include "engine/parcel/digest.h"
#include "engine/parcel/pieced_read.h"
#include "engine/plan/coalesce.h"

namespace kvferry {

// A one-sided read into memory that the CPU can touch, with its digest: each piece is hashed while the next ones are
// copied and it is still in the processor's cache. On loop only.
class DigestedRead final : public PiecedRead, public std::enable_shared_from_this<DigestedRead> {
 public:
  // `whole`: as for a fabric. `path` outlives this or is gone by stop().
  DigestedRead(OneSidedPath& path, std::shared_ptr<Job> whole, Done done);

  void start() override { copy_ahead(); }
  void stop(bool path_stands) override;

 private:
  struct Piece {
    Chunk chunk;
    std::shared_ptr<Job> job;
    bool copied = false;
  };
  using PiecePtr = std::shared_ptr<Piece>;

  void copy_ahead();
  void on_copied(Piece& piece, Status status);
  void let_go(Job& job);
  void hash(const Chunk& chunk);
  void finish(Status status);

  OneSidedPath& path_;
  const std::shared_ptr<Job> whole_;
  Chunker chunker_;
  Done done_;
  std::deque<PiecePtr> pieces_;  // under way, in the order of the bytes
  Digest digest_;
};

}  // namespace kvferry
