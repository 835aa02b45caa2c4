#pragma once

#include <memory>
#include <string>
#include <vector>

#include "test/simulator/sim_engine.h"

namespace kvferry::simulator {

class World;

// What the engines of a world are used for, and what must hold meanwhile.
class Workload {
 public:
  virtual ~Workload() = default;
  // A new process runs on the machine; the one that ran there is about to end.
  virtual void started(SimEngine& engine) = 0;
  virtual void ending(SimEngine& engine) = 0;
  // After every turn of an engine: checks what the turn may have changed.
  virtual void after_turn(SimEngine& engine) = 0;
  // Does one drawn thing.
  virtual void act() = 0;
  // All faults are over: no new work from here on. True when what was begun has ended.
  virtual bool at_rest() = 0;
  // At rest: whether everything works again and nothing was left behind.
  virtual void check_recovered() = 0;
};

struct Shape {
  size_t engines = 3;
  Duration length = std::chrono::seconds(20);  // of the part with faults
  Duration between_actions = std::chrono::milliseconds(50);
  Duration between_faults = std::chrono::milliseconds(800);
  Wires::Options wires;
  SimEngine::Fittings fittings;  // of every engine
};

// One run: some engines, a network, a workload and its faults, all drawn from one seed.
class World {
 public:
  World(uint64_t seed, bool recording, const Shape& shape);
  ~World();

  // REQUIRES: the workload outlives the run.
  void run(Workload& workload);

  // The first violation ends the run.
  template <class... Args>
  void fail(fmt::format_string<Args...> format, Args&&... args) {
    if (failure_.empty()) failure_ = fmt::format(format, std::forward<Args>(args)...);
    history_.say("VIOLATION: {}", failure_);
  }
  bool failed() const { return !failure_.empty(); }
  const std::string& failure() const { return failure_; }

  Timeline& timeline() { return timeline_; }
  Wires& wires() { return wires_; }
  History& history() { return history_; }
  Random& random() { return random_; }
  TimePoint now() const { return timeline_.now(); }
  size_t engines() const { return engines_.size(); }
  SimEngine& engine(size_t index) { return *engines_[index]; }
  Duration draw(Duration least, Duration most);
  bool chance(unsigned per_cent) { return random_.below(100) < per_cent; }

  // Lets time pass until `done` or the end of `patience`. False: it is not done.
  bool run_until(Duration patience, const std::function<bool()>& done);

 private:
  friend class Faults;
  void act_again(Workload& workload, TimePoint until);
  void settle(Workload& workload);

  const Shape shape_;
  Timeline timeline_;
  History history_;
  SeededRandom random_;       // of the workload and the faults
  SeededRandom wire_random_;  // of the wires, so that one more packet does not change what is done
  Wires wires_;
  Workload* workload_ = nullptr;
  std::string failure_;
  std::vector<std::unique_ptr<SimEngine>> engines_;
};

}  // namespace kvferry::simulator
