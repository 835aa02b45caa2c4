#pragma once

#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <vector>

#include "engine/io/loop.h"
#include "engine/memory/memory_kind.h"

namespace kvferry {

// Host buffers, copies and events of memory that the CPU cannot touch, within a budget (I6). On loop only.
class Staging {
 public:
  // Holds part of the budget; returned with the object. May outlive the Staging, not the MemoryOps.
  class Buffer {
   public:
    Buffer() = default;
    Buffer(Buffer&& other) noexcept { *this = std::move(other); }
    Buffer& operator=(Buffer&& other) noexcept;
    ~Buffer() { release(); }
    std::byte* data() const { return data_; }
    size_t size() const { return size_; }
    explicit operator bool() const { return data_ != nullptr; }
    void release();

   private:
    friend class Staging;
    std::weak_ptr<Staging*> owner_;  // which a buffer outlives that a fabric could not let go of
    MemoryOps* ops_ = nullptr;
    std::byte* data_ = nullptr;
    size_t size_ = 0;
    bool granted_ = false;  // by acquire()
  };
  using CopyDone = std::function<void(Status)>;
  using Acquired = std::function<void(Result<Buffer>)>;

  // At least one buffer of any size is always granted, whatever was taken besides: a chunk larger than the budget
  // cannot wait for ever, nor two engines for each other that have all of theirs taken for each other's answers.
  Staging(Loop& loop, size_t budget) : loop_(loop), budget_(budget), poll_(loop), event_poll_(loop) {}

  // Calls `acquired` at once or when the budget allows, in order of asking.
  void acquire(MemoryOps& ops, size_t length, Acquired acquired);
  // At once, whatever the budget: for a payload that is arriving already. The caller bounds how many there are.
  Result<Buffer> take_now(MemoryOps& ops, size_t length) { return allocate(ops, length); }
  // Calls `done` on the loop when the copy has landed. Device copies have no descriptor to wait on: they are polled by
  // a timer while one is in flight.
  void copy(MemoryOps& ops, CopyDirection direction, std::span<const CopySpan> spans, CopyDone done);
  // Waits, without the loop, until no copy is in flight any more; the callbacks follow on the loop. For cancel (I4):
  // bounded by one chunk's copy.
  void drain();
  // Calls `done` on the loop when all work before the event is done, or with the reason why that is not to be had;
  // never, and the event is not looked at any more, once the handle is dropped. Polled too, more and more seldom: an
  // event may be far off. Bounded by the parcels and transfers that wait (I6).
  using Watch = std::shared_ptr<void>;
  [[nodiscard]] Watch when(MemoryOps& ops, EventId event, CopyDone done);

 private:
  struct Waiting {
    MemoryOps* ops;
    size_t length;
    Acquired acquired;
  };
  struct Copy {
    MemoryOps* ops;
    CopyId id;
    CopyDone done;
    bool landed = false;
    Status status;
  };
  bool fits(size_t length) const { return granted_ == 0 || in_use_ + length <= budget_; }
  Result<Buffer> allocate(MemoryOps& ops, size_t length);
  Result<Buffer> grant(MemoryOps& ops, size_t length);
  void serve_waiting();
  void check_copies();
  static void poll_one(Copy& copy);
  struct Event {
    MemoryOps* ops;
    EventId id;
    CopyDone done;
    Duration pause;  // until it is looked at again
    TimePoint next;
    std::weak_ptr<void> watch;
  };
  void check_events();

  const std::shared_ptr<Staging*> self_ = std::make_shared<Staging*>(this);
  Loop& loop_;
  const size_t budget_;
  size_t in_use_ = 0;
  size_t granted_ = 0;  // buffers of acquire() among them
  std::deque<Waiting> waiting_;
  bool serving_ = false;
  std::list<Copy> copies_;
  Timer poll_;
  std::list<Event> events_;
  Timer event_poll_;
};

}  // namespace kvferry
