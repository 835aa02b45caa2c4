#include "engine/fabric/loopback/loopback.h"

#include <thread>

namespace kvferry::loopback {
namespace {

constexpr uint64_t kSliceBytes = uint64_t{256} << 10;
constexpr size_t kTurnBytes = size_t{1} << 20;
constexpr size_t kTurnSpans = 256;  // a fake device takes its time for each

}  // namespace

void Hub::add(const std::string& engine_id, uint64_t incarnation, const Registry& registry, const GateWords& words) {
  const std::lock_guard lock(mutex_);
  members_.insert_or_assign({engine_id, incarnation}, Member{&registry, &words});
}

void Hub::remove(const std::string& engine_id, uint64_t incarnation) {
  const std::lock_guard lock(mutex_);
  members_.erase({engine_id, incarnation});
}

bool Hub::has(const std::string& engine_id, uint64_t incarnation) const {
  const std::lock_guard lock(mutex_);
  return members_.contains({engine_id, incarnation});
}

Status Hub::copy(const std::string& engine_id, uint64_t incarnation, Operation operation, const Pair& pair,
                 uint32_t needed) const {
  const std::lock_guard lock(mutex_);
  const auto found = members_.find({engine_id, incarnation});
  if (found == members_.end()) return Error{ErrorCode::peer_lost, "the peer has left the hub"};
  KVF_ASSIGN_OR_RETURN(const RegionPin pin, found->second.registry->pin_remote(pair.region, needed));
  KVF_RETURN_IF_ERROR(check_span(pin->info, pair.offset, pair.length));
  const CopySpan span{pin->at(pair.offset), pair.local, pair.length};
  const CopyDirection direction = operation == Operation::read ? CopyDirection::to_host : CopyDirection::to_device;
  KVF_ASSIGN_OR_RETURN(const CopyId id, pin->ops->start_copy(direction, {&span, 1}));
  while (true) {
    KVF_ASSIGN_OR_RETURN(const bool landed, pin->ops->copy_done(id));
    if (landed) return {};
    std::this_thread::yield();
  }
}

bool Hub::in_force(const std::string& engine_id, uint64_t incarnation, WordIndex word, uint64_t generation) const {
  const std::lock_guard lock(mutex_);
  const auto found = members_.find({engine_id, incarnation});
  return found != members_.end() && word < GateWords::kWords && found->second.words->load(word) == generation;
}

void LoopbackPath::start(std::shared_ptr<Job> job) {
  auto running = std::make_shared<Running>(Running{job, Chunker(job->pairs, kSliceBytes, 1)});
  jobs_.emplace(job.get(), running);
  step(running);
}

// One slice of one span; then the loop, and in virtual time the owner, has its turn.
void LoopbackPath::step(const std::shared_ptr<Running>& running) {
  Job& job = *running->job;
  for (size_t moved = 0, spans = 0; moved < kTurnBytes && spans < kTurnSpans && !running->chunker.done(); ++spans) {
    const Chunk slice = running->chunker.take();
    const RegionInfo& region = *job.remote[slice.first];
    const uint32_t wanted = job.operation == Operation::read ? kRemoteRead : kRemoteWrite;
    // A private region is opened by the ticket that brought the job here.
    const uint32_t needed = region.permissions == kPrivate ? uint32_t{kPrivate} : wanted;
    Status status;
    for_each_pair(job.pairs, slice, [&](const Pair& pair) {
      status = hub_->copy(engine_id_, incarnation_, job.operation, pair, needed);
    });
    if (!status.ok()) return finish(running, std::move(status));
    moved += slice.bytes;
    job.bytes_done += slice.bytes;
    if (slice.skip + slice.bytes == job.pairs[slice.first].length) ++job.spans_done;
    if (hub_->span_delay() > Duration(0)) break;
  }
  if (running->chunker.done()) return finish(running, {});
  loop_.call_at(loop_.now() + hub_->span_delay(), [this, weak = std::weak_ptr(running)] {
    if (const auto held = weak.lock()) step(held);
  });
}

void LoopbackPath::finish(const std::shared_ptr<Running>& running, Status status) {
  jobs_.erase(running->job.get());
  running->job->done(std::move(status));
}

bool LoopbackPath::cancel(const std::shared_ptr<Job>& job, Task) {
  jobs_.erase(job.get());
  return true;
}

std::optional<bool> LoopbackPath::in_force(WordIndex word, uint64_t generation) const {
  return hub_->in_force(engine_id_, incarnation_, word, generation);
}

}  // namespace kvferry::loopback
