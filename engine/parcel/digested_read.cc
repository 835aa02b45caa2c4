#include "engine/parcel/digested_read.h"

#include <utility>

namespace kvferry {
namespace {

constexpr uint64_t kPieceBytes = uint64_t{2} << 20;  // hashed in one turn of the loop: about 0.2 ms (I7)
constexpr size_t kPiecePairs = 4096;
constexpr size_t kAhead = 3;  // one that is copied, one that waits for it, one that is hashed

}  // namespace

DigestedRead::DigestedRead(OneSidedPath& path, std::shared_ptr<Job> whole, Done done)
    : path_(path),
      whole_(std::move(whole)),
      chunker_(whole_->pairs, kPieceBytes, kPiecePairs),
      done_(std::move(done)) {}

void DigestedRead::stop(bool path_stands) {
  done_ = nullptr;
  for (const PiecePtr& piece : std::exchange(pieces_, {})) {
    if (path_stands && !piece->copied) path_.cancel(piece->job, {});
    let_go(*piece->job);
  }
}

// The fabric may know the job for a moment longer, and its regions need not wait for that.
void DigestedRead::let_go(Job& job) {
  job.pins.clear();
  whole_->loose |= job.loose;
}

void DigestedRead::copy_ahead() {
  const auto alive = shared_from_this();  // a path may end a piece at once, and the last one ends this
  while (done_ && pieces_.size() < kAhead && !chunker_.done()) {
    auto piece = std::make_shared<Piece>();
    piece->chunk = chunker_.take();
    Job& job = *(piece->job = std::make_shared<Job>());
    job.operation = Operation::read;
    job.bytes = piece->chunk.bytes;
    job.deadline = whole_->deadline;
    for (const RegionPin& pin : whole_->pins) job.pins.push_back(pin.another());
    job.table = whole_->table;
    const auto first = whole_->remote.begin() + static_cast<ptrdiff_t>(piece->chunk.first);
    job.remote.assign(first, first + static_cast<ptrdiff_t>(piece->chunk.count));
    job.pairs.reserve(piece->chunk.count);
    for_each_pair(whole_->pairs, piece->chunk, [&](const Pair& pair) { job.pairs.push_back(pair); });
    job.done = [weak = weak_from_this(), held = std::weak_ptr(piece)](Status status) {
      const auto self = weak.lock();
      const auto copied = held.lock();
      if (self != nullptr && copied != nullptr && self->done_) self->on_copied(*copied, std::move(status));
    };
    pieces_.push_back(piece);
    path_.start(piece->job);
  }
}

// The copy threads may finish a piece before the one ahead of it; the digest keeps to the order of the bytes.
void DigestedRead::on_copied(Piece& piece, Status status) {
  piece.copied = true;
  let_go(*piece.job);
  if (!status.ok()) return finish(std::move(status));
  while (!pieces_.empty() && pieces_.front()->copied) {
    hash(pieces_.front()->chunk);
    whole_->bytes_done += pieces_.front()->chunk.bytes;
    pieces_.pop_front();
    copy_ahead();
  }
  if (done_ && pieces_.empty()) finish({});
}

void DigestedRead::hash(const Chunk& chunk) {
  std::vector<iovec> parts;
  parts.reserve(chunk.count);
  for_each_pair(whole_->pairs, chunk, [&](const Pair& pair) { parts.push_back({pair.local, pair.length}); });
  digest_.add(parts);
}

void DigestedRead::finish(Status status) {
  const Done done = std::exchange(done_, nullptr);
  stop(true);
  done(std::move(status), digest_.value());
}

}  // namespace kvferry
