#include "engine/parcel/digest_run.h"

namespace kvferry {
namespace {

constexpr uint64_t kTurnBytes = uint64_t{2} << 20;    // about 0.2 ms
constexpr uint64_t kStagedBytes = uint64_t{1} << 20;  // through one buffer

}  // namespace

std::shared_ptr<DigestRun> DigestRun::start(Loop& loop, Staging& staging, MemoryOps& ops, CacheWalk bytes, Done done) {
  std::shared_ptr<DigestRun> run(new DigestRun(loop, staging, ops, std::move(bytes), std::move(done)));
  run->step();
  return run;
}

void DigestRun::stop() {
  over_ = true;
  done_ = nullptr;
  if (copying_) staging_.drain();
}

void DigestRun::step() {
  if (over_) return;
  if (bytes_.at_end()) return finish(digest_.value());
  if (!ops_.host_addressable()) return step_staged();
  auto pieces = bytes_.take(kTurnBytes);
  if (!pieces) return finish(std::move(pieces).error());
  digest_.add(*pieces);
  if (bytes_.at_end()) return finish(digest_.value());
  loop_.defer([self = shared_from_this()] { self->step(); });
}

void DigestRun::step_staged() {
  auto taken = bytes_.take(kStagedBytes);
  if (!taken) return finish(std::move(taken).error());
  auto parts = std::make_shared<std::vector<iovec>>(std::move(*taken));
  uint64_t bytes = 0;
  for (const iovec& part : *parts) bytes += part.iov_len;
  staging_.acquire(ops_, bytes, [this, self = shared_from_this(), parts](Result<Staging::Buffer> acquired) {
    if (over_) return;
    if (!acquired) return finish(std::move(acquired).error());
    auto buffer = std::make_shared<Staging::Buffer>(std::move(*acquired));
    std::vector<CopySpan> copies;
    std::byte* into = buffer->data();
    for (const iovec& part : *parts) {
      copies.push_back({static_cast<std::byte*>(part.iov_base), into, part.iov_len});
      into += part.iov_len;
    }
    copying_ = true;
    staging_.copy(ops_, CopyDirection::to_host, copies, [this, self, buffer](const Status& status) {
      copying_ = false;
      if (over_) return;
      if (!status.ok()) return finish(status.error());
      const iovec piece{buffer->data(), buffer->size()};
      digest_.add({&piece, 1});
      buffer->release();
      step();
    });
  });
}

void DigestRun::finish(Result<uint64_t> result) {
  over_ = true;
  std::exchange(done_, nullptr)(std::move(result));
}

}  // namespace kvferry
