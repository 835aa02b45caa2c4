#include <memory>
#include <utility>
#include <vector>

#include "engine/fabric/tcp/path.h"

// Chunks of memory that the CPU cannot touch, between the device and a lane.

namespace kvferry::tcp {
namespace {

std::vector<CopySpan> local_copies(const Job& job, const Chunk& chunk, std::byte* staging) {
  std::vector<CopySpan> out;
  out.reserve(chunk.count);
  for_each_pair(job.pairs, chunk, [&](const Pair& pair) {
    out.push_back({pair.local, staging, pair.length});
    staging += pair.length;
  });
  return out;
}

}  // namespace

bool TcpPath::may_begin(const Work& work) const {
  const Job& job = *work.job;
  return job.operation == Operation::read || job.local_ops->host_addressable() || *staged_bytes_ < options_.lane_window;
}

// The copy out of the device runs while other chunks are on the wire; the lane is chosen again when it has landed.
void TcpPath::stage_and_send(LaneState& state, ChunkOp moved) {
  if (moved.staging) return send_from_host(state, std::move(moved));
  auto op = std::make_shared<ChunkOp>(std::move(moved));
  *staged_bytes_ += op->chunk.bytes;
  op->share = std::shared_ptr<void>(nullptr, [all = staged_bytes_, bytes = op->chunk.bytes](void*) { *all -= bytes; });
  MemoryOps& ops = *op->work->job->local_ops;
  const std::shared_ptr<bool> alive = alive_;
  staging_.acquire(ops, op->chunk.bytes, [this, alive, op, &ops](Result<Staging::Buffer> acquired) {
    if (!*alive) return;
    if (op->work->ended || op->work->dropped) return op->share.reset(), pump_later();
    if (!acquired) return finish_chunk(std::move(*op), std::move(acquired).error()), pump_later();
    op->staging = std::move(*acquired);
    const auto copies = local_copies(*op->work->job, op->chunk, op->staging.data());
    staging_.copy(ops, CopyDirection::to_host, copies, [this, alive, op](Status status) {
      if (!*alive) return;
      if (op->work->ended || op->work->dropped) return op->share.reset(), pump_later();
      if (!status.ok()) return finish_chunk(std::move(*op), std::move(status)), pump_later();
      again_.push_back(std::move(*op));
      pump();
    });
  });
}

// A read into memory that the CPU cannot touch is done when the copy out of the staging buffer is.
void TcpPath::finish_read(ChunkOp moved) {
  auto op = std::make_shared<ChunkOp>(std::move(moved));
  const Job& job = *op->work->job;
  const auto copies = local_copies(job, op->chunk, op->staging.data());
  const std::shared_ptr<bool> alive = alive_;
  staging_.copy(*job.local_ops, CopyDirection::to_device, copies, [this, alive, op](Status status) {
    if (*alive) finish_chunk(std::move(*op), std::move(status));
  });
}

}  // namespace kvferry::tcp
