#include "engine/memory/staging.h"

#include <algorithm>
#include <thread>

namespace kvferry {
namespace {

constexpr Duration kPollPeriod = std::chrono::microseconds(20);
constexpr Duration kLongestEventPause = std::chrono::microseconds(500);

}  // namespace

Staging::Buffer& Staging::Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    release();
    owner_ = std::move(other.owner_);
    ops_ = other.ops_;
    data_ = std::exchange(other.data_, nullptr);
    size_ = other.size_;
    granted_ = other.granted_;
  }
  return *this;
}

void Staging::Buffer::release() {
  if (data_ == nullptr) return;
  ops_->free_staging(std::exchange(data_, nullptr), size_);
  const auto owner = owner_.lock();
  if (!owner) return;
  (*owner)->in_use_ -= size_;
  (*owner)->granted_ -= granted_ ? 1 : 0;
  (*owner)->serve_waiting();
}

Result<Staging::Buffer> Staging::allocate(MemoryOps& ops, size_t length) {
  Buffer buffer;
  buffer.data_ = ops.allocate_staging(length);
  if (buffer.data_ == nullptr)
    return Error{ErrorCode::resource_exhausted, "no staging memory for " + std::string(to_string(ops.kind()))};
  buffer.owner_ = self_;
  buffer.ops_ = &ops;
  buffer.size_ = length;
  in_use_ += length;
  return buffer;
}

Result<Staging::Buffer> Staging::grant(MemoryOps& ops, size_t length) {
  auto buffer = allocate(ops, length);
  if (buffer) {
    buffer->granted_ = true;
    ++granted_;
  }
  return buffer;
}

void Staging::acquire(MemoryOps& ops, size_t length, Acquired acquired) {
  if (waiting_.empty() && fits(length)) return acquired(grant(ops, length));
  waiting_.push_back({&ops, length, std::move(acquired)});
}

// All that have room: one that gets none in the end gives nothing back that would serve the next.
void Staging::serve_waiting() {
  if (std::exchange(serving_, true)) return;  // called by what is served
  while (!waiting_.empty() && fits(waiting_.front().length)) {
    Waiting next = std::move(waiting_.front());
    waiting_.pop_front();
    next.acquired(grant(*next.ops, next.length));
  }
  serving_ = false;
}

void Staging::copy(MemoryOps& ops, CopyDirection direction, std::span<const CopySpan> spans, CopyDone done) {
  auto started = ops.start_copy(direction, spans);
  if (!started) return done(std::move(started).error());
  copies_.push_back(Copy{&ops, *started, std::move(done), false, {}});
  if (!poll_.armed()) poll_.arm(loop_.now(), [this] { check_copies(); });
}

void Staging::poll_one(Copy& copy) {
  if (copy.landed) return;
  auto done = copy.ops->copy_done(copy.id);
  if (done && !*done) return;
  copy.landed = true;
  if (!done) copy.status = std::move(done).error();
}

void Staging::check_copies() {
  for (auto copy = copies_.begin(); copy != copies_.end();) {
    poll_one(*copy);
    if (!copy->landed) {
      ++copy;
      continue;
    }
    std::list<Copy> finished;
    finished.splice(finished.begin(), copies_, copy++);
    finished.front().done(std::move(finished.front().status));
  }
  if (!copies_.empty()) poll_.arm(loop_.now() + kPollPeriod, [this] { check_copies(); });
}

Staging::Watch Staging::when(MemoryOps& ops, EventId event, CopyDone done) {
  auto watch = std::make_shared<char>();
  events_.push_back(Event{&ops, event, std::move(done), kPollPeriod, loop_.now(), watch});
  event_poll_.arm(loop_.now(), [this] { check_events(); });
  return watch;
}

void Staging::check_events() {
  const TimePoint now = loop_.now();
  TimePoint next = kNever;
  for (auto event = events_.begin(); event != events_.end();) {
    if (event->watch.expired()) {
      event = events_.erase(event);
      continue;
    }
    if (event->next <= now) {
      const auto done = event->ops->event_done(event->id);
      if (!done || *done) {
        std::list<Event> ended;
        ended.splice(ended.begin(), events_, event++);
        ended.front().done(done ? Status() : Status(done.error()));
        continue;
      }
      event->next = now + event->pause;
      event->pause = std::min(event->pause * 2, kLongestEventPause);
    }
    next = std::min(next, event->next);
    ++event;
  }
  if (next != kNever) event_poll_.arm(next, [this] { check_events(); });
}

void Staging::drain() {
  for (Copy& copy : copies_) {
    while (!copy.landed) {
      poll_one(copy);
      if (!copy.landed) std::this_thread::yield();
    }
  }
}

}  // namespace kvferry
