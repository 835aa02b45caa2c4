#pragma once

#include <map>
#include <unordered_map>
#include <vector>

#include "common/random.h"
#include "engine/io/loop.h"
#include "test/simulator/timeline.h"

namespace kvferry::simulator {

// Something that a loop polls: one end of a stream, a listener. Level-triggered.
class Pollable {
 public:
  virtual ~Pollable() = default;
  virtual bool ready() const = 0;
  virtual void dispatch() = 0;
};

// One engine's loop in virtual time: turns like those of EpollLoop, each at its place in the timeline. A turn takes no
// time by itself, but the next one begins only `turn_cost` later, and none begins while the loop is paused: then timers
// fire late and sockets fill, as when a process is stopped.
class SimLoop final : public Loop {
 public:
  // `offset`: how far this engine's clock is from the timeline's; no two clocks agree.
  SimLoop(Timeline& timeline, Random& random, Duration offset, Task after_turn)
      : timeline_(timeline), random_(random), offset_(offset), after_turn_(std::move(after_turn)) {}
  ~SimLoop() override { timeline_.cancel(planned_); }

  TimePoint now() const override { return timeline_.now() + offset_; }
  TimerId call_at(TimePoint when, Task task) override;
  void cancel_timer(TimerId id) override;
  void defer(Task task) override;
  void before_sleep(Task task) override;

  uint64_t watch(Pollable& pollable);
  void unwatch(uint64_t id) { watched_.erase(id); }
  // A pollable has become ready.
  void poke();

  void set_turn_cost(Duration cost) { turn_cost_ = cost; }
  // No turn before this point of the timeline.
  void pause_until(TimePoint when);
  bool paused() const { return paused_until_ > timeline_.now(); }
  TimePoint paused_until() const { return paused_until_; }  // or was, last
  // True inside of a turn: nobody else may call into the engine now.
  bool in_turn() const { return in_turn_; }
  // No turn any more.
  void stop();
  // After stop(): runs what was put off, until nothing is.
  void drain();

  size_t timers() const { return timers_.size(); }
  size_t watched() const { return watched_.size(); }

 private:
  void plan();
  void turn();
  void poll();
  void run_timers();
  void run_deferred();

  Timeline& timeline_;
  Random& random_;
  const Duration offset_;
  const Task after_turn_;
  Duration turn_cost_ = std::chrono::microseconds(5);
  TimePoint next_allowed_{};
  TimePoint paused_until_{};
  bool stopped_ = false;
  bool in_turn_ = false;
  bool poked_ = false;
  Timeline::EventId planned_ = 0;
  TimePoint planned_for_{};

  std::map<std::pair<TimePoint, TimerId>, Task> timers_;
  std::unordered_map<TimerId, TimePoint> timer_times_;
  TimerId next_timer_ = 1;
  std::vector<Task> deferred_;
  uint64_t put_off_ = 0;  // calls of before_sleep()
  std::map<uint64_t, Pollable*> watched_;
  uint64_t next_watch_ = 1;
};

}  // namespace kvferry::simulator
