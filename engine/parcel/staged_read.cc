#include "engine/parcel/staged_read.h"

namespace kvferry {
namespace {

constexpr uint64_t kPieceBytes = uint64_t{1} << 20;
constexpr size_t kPiecePairs = 4096;

}  // namespace

StagedRead::StagedRead(OneSidedPath& path, Staging& staging, MemoryOps& ops, std::shared_ptr<Job> whole, bool digest,
                       Done done)
    : path_(path),
      staging_(staging),
      ops_(ops),
      whole_(std::move(whole)),
      chunker_(whole_->pairs, kPieceBytes, kPiecePairs),
      done_(std::move(done)) {
  if (digest) digest_.emplace();
}

void StagedRead::stop(bool path_stands) {
  over_ = true;
  done_ = nullptr;
  if (piece_ && path_stands) path_.cancel(piece_, {});
  if (copying_)
    staging_.drain();
  else
    let_go();
}

// I4: the buffer goes back with the last that holds it, which is the piece where the fabric could not let go of that.
void StagedRead::let_go() {
  piece_.reset();
  buffer_.reset();
}

void StagedRead::next() {
  if (over_) return;
  if (chunker_.done()) return finish({});
  const Chunk chunk = chunker_.take();
  staging_.acquire(ops_, chunk.bytes, [self = shared_from_this(), chunk](Result<Staging::Buffer> acquired) {
    if (self->over_) return;
    if (!acquired) return self->finish(std::move(acquired).error());
    self->fetch(chunk, std::move(*acquired));
  });
}

void StagedRead::fetch(const Chunk& chunk, Staging::Buffer buffer) {
  buffer_ = std::make_shared<Staging::Buffer>(std::move(buffer));
  piece_ = std::make_shared<Job>();
  piece_->operation = Operation::read;
  piece_->bytes = chunk.bytes;
  piece_->deadline = whole_->deadline;
  piece_->landing = buffer_;
  piece_->table = whole_->table;
  std::byte* into = buffer_->data();
  size_t index = chunk.first;
  for_each_pair(whole_->pairs, chunk, [&](const Pair& pair) {
    piece_->pairs.push_back({into, pair.region, pair.offset, pair.length});
    piece_->remote.push_back(whole_->remote[index++]);
    into += pair.length;
  });
  piece_->done = [weak = weak_from_this(), chunk](Status status) {
    const auto self = weak.lock();
    if (self == nullptr || self->over_) return;
    if (!status.ok()) return self->finish(std::move(status));
    self->piece_.reset();
    self->land(chunk);
  };
  path_.start(piece_);
}

void StagedRead::land(const Chunk& chunk) {
  if (digest_) {
    const iovec piece{buffer_->data(), buffer_->size()};
    digest_->add({&piece, 1});
  }
  std::vector<CopySpan> copies;
  std::byte* from = buffer_->data();
  for_each_pair(whole_->pairs, chunk, [&](const Pair& pair) {
    copies.push_back({pair.local, from, pair.length});
    from += pair.length;
  });
  copying_ = true;
  staging_.copy(ops_, CopyDirection::to_device, copies,
                [self = shared_from_this(), bytes = chunk.bytes](Status status) {
                  self->copying_ = false;
                  self->buffer_->release();
                  if (self->over_) return;
                  if (!status.ok()) return self->finish(std::move(status));
                  self->whole_->bytes_done += bytes;
                  self->next();
                });
}

void StagedRead::finish(Status status) {
  over_ = true;
  let_go();
  std::exchange(done_, nullptr)(std::move(status), digest_ ? digest_->value() : 0);
}

}  // namespace kvferry
