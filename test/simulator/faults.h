#pragma once

#include "test/simulator/world.h"

namespace kvferry::simulator {

// The weather of one world: which kinds of faults it has is drawn once, so that many seeds know only a few of them.
class Faults {
 public:
  Faults(World& world, Workload& workload);

  void one();
  // Heals everything: links, stopped engines, machines that are down.
  void end();

 private:
  enum class Kind : uint8_t {
    kill,
    power,
    pause,
    partition,
    one_way,
    isolate,
    reset,
    half_reset,
    swallow,
    slow_link,
    slow_engine,
    count
  };
  void kill(bool silently);
  void pause();
  void partition(bool one_way);
  void isolate();
  void slow_link();
  void slow_engine();
  SimEngine* draw_running();
  void restart_later(SimEngine& engine);

  World& world_;
  Workload& workload_;
  std::vector<Kind> kinds_;
  bool over_ = false;
};

}  // namespace kvferry::simulator
