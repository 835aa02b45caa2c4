#include "engine/parcel/mapped_read.h"

#include <utility>

namespace kvferry {

void MappedRead::start() {
  landing_ = true;
  whole_->done = [weak = weak_from_this()](Status status) {
    if (const auto self = weak.lock()) self->on_landed(std::move(status));
  };
  path_.start(whole_);
}

void MappedRead::on_landed(Status status) {
  landing_ = false;
  if (!done_) return;
  if (!status.ok()) return finish(std::move(status), 0);
  const auto computed = [weak = weak_from_this()](Result<uint64_t> digest) {
    const auto self = weak.lock();
    if (!self) return;
    if (digest)
      self->finish({}, *digest);
    else
      self->finish(std::move(digest).error(), 0);
  };
  const auto self = shared_from_this();
  auto run = DigestRun::start(loop_, staging_, *whole_->local_ops, std::move(bytes_), computed);
  if (!run->over()) run_ = std::move(run);
}

void MappedRead::finish(Status status, uint64_t digest) {
  if (done_) std::exchange(done_, nullptr)(std::move(status), digest);
}

void MappedRead::stop(bool path_stands) {
  done_ = nullptr;
  if (landing_ && path_stands) path_.cancel(whole_, {});
  if (run_) run_->stop();
}

}  // namespace kvferry
