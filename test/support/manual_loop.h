#pragma once

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "engine/io/loop.h"
#include "engine/io/stream.h"

namespace kvferry::test {

// A loop that does only what it is told, at the time that it is told.
class ManualLoop final : public Loop {
 public:
  TimePoint now() const override { return now_; }
  TimerId call_at(TimePoint when, Task task) override {
    timers_.emplace(std::pair{when, ++last_}, std::move(task));
    return last_;
  }
  void cancel_timer(TimerId id) override {
    std::erase_if(timers_, [&](const auto& timer) { return timer.first.second == id; });
  }
  void defer(Task task) override { deferred_.push_back(std::move(task)); }
  void before_sleep(Task task) override { defer(std::move(task)); }

  // What was deferred before, and not what that defers. False: nothing was.
  bool run_one_turn() {
    std::deque<Task> batch;
    batch.swap(deferred_);
    for (const Task& task : batch) task();
    return !batch.empty();
  }
  // In the middle of a task.
  void let_pass(Duration span) { now_ += span; }
  void run_deferred() {
    while (!deferred_.empty()) {
      const Task task = std::move(deferred_.front());
      deferred_.pop_front();
      task();
    }
  }
  void advance(Duration span) {
    const TimePoint until = now_ + span;
    run_deferred();
    while (!timers_.empty() && timers_.begin()->first.first <= until) {
      auto timer = timers_.extract(timers_.begin());
      now_ = std::max(now_, timer.key().first);
      timer.mapped()();
      run_deferred();
    }
    now_ = until;
  }

 private:
  TimePoint now_{std::chrono::hours(1)};
  TimerId last_ = 0;
  std::map<std::pair<TimePoint, TimerId>, Task> timers_;
  std::deque<Task> deferred_;
};

// What both ends of a MemoryStream know; outlives the stream, which engine parts destroy when they like.
struct MemoryPipe {
  std::string input;   // not read yet by the engine's part
  std::string output;  // written by it
  size_t read_at_once = SIZE_MAX;
  size_t room = SIZE_MAX;  // for output
  bool ended = false;      // reads fail behind the input
  bool torn = false;
  bool was_reset = false;
  bool alive = true;
  StreamHandler* handler = nullptr;
  bool wants_read = false;
  bool wants_write = false;

  // Lets the engine's part read and write until nothing moves any more.
  void pump() {
    for (int turn = 0; turn < 100000 && alive && handler != nullptr; ++turn) {
      const std::pair before(input.size(), output.size());
      const bool readable = wants_read && (!input.empty() || ended);
      const bool writable = wants_write && room > 0;
      if (!readable && !writable) return;
      handler->on_stream_ready(readable, writable);
      if (alive && std::pair(input.size(), output.size()) == before) return;
    }
  }
};

class MemoryStream final : public Stream {
 public:
  explicit MemoryStream(std::shared_ptr<MemoryPipe> pipe) : pipe_(std::move(pipe)) {}
  ~MemoryStream() override {
    pipe_->alive = false;
    pipe_->handler = nullptr;
  }

  void set_handler(StreamHandler* handler) override { pipe_->handler = handler; }
  void want(bool readable, bool writable) override {
    pipe_->wants_read = readable;
    pipe_->wants_write = writable;
  }
  Result<size_t> read(std::span<const iovec> into) override {
    if (pipe_->input.empty() && pipe_->ended)
      return Error{ErrorCode::peer_lost, "connection closed by the other side", {}, {}, {}};
    size_t moved = 0;
    for (const iovec& part : into) {
      const size_t count = std::min({part.iov_len, pipe_->input.size() - moved, pipe_->read_at_once - moved});
      std::memcpy(part.iov_base, pipe_->input.data() + moved, count);
      moved += count;
    }
    pipe_->input.erase(0, moved);
    return moved;
  }
  Result<size_t> write(std::span<const iovec> from) override {
    size_t moved = 0;
    for (const iovec& part : from) {
      const size_t count = std::min(part.iov_len, pipe_->room);
      pipe_->output.append(static_cast<const char*>(part.iov_base), count);
      pipe_->room -= pipe_->room == SIZE_MAX ? 0 : count;
      moved += count;
    }
    return moved;
  }
  bool torn() const override { return pipe_->torn; }
  bool has_input() const override { return !pipe_->input.empty(); }
  void reset_on_close() override { pipe_->was_reset = true; }
  std::string peer_address() const override { return "memory:1"; }

 private:
  std::shared_ptr<MemoryPipe> pipe_;
};

inline std::pair<std::unique_ptr<Stream>, std::shared_ptr<MemoryPipe>> memory_stream(std::string_view input = {}) {
  auto pipe = std::make_shared<MemoryPipe>();
  pipe->input = input;
  return {std::make_unique<MemoryStream>(pipe), pipe};
}

}  // namespace kvferry::test
