#include "test/simulator/world.h"

#include "test/simulator/faults.h"

namespace kvferry::simulator {

using std::chrono::seconds;

World::World(uint64_t seed, bool recording, const Shape& shape)
    : shape_(shape),
      history_(timeline_, recording),
      random_(seed),
      wire_random_(random_.next()),
      wires_(timeline_, wire_random_, history_, shape.engines, shape.wires) {
  for (HostIndex host = 0; host < shape.engines; ++host) {
    SimEngine::Hooks hooks{[this](SimEngine& engine) {
      history_.mark(102, engine.host());
      if (workload_ != nullptr && !failed()) workload_->after_turn(engine);
    }};
    engines_.push_back(std::make_unique<SimEngine>(timeline_, wires_, history_, host, random_.next(), shape.fittings,
                                                   std::move(hooks)));
  }
}

// Engines end as by SIGKILL, so that they let go of their streams while the wires are still there.
World::~World() {
  workload_ = nullptr;
  for (const auto& engine : engines_)
    if (engine->running()) engine->kill(false);
}

Duration World::draw(Duration least, Duration most) {
  return least + Duration(static_cast<int64_t>(random_.below(static_cast<uint64_t>((most - least).count()) + 1)));
}

bool World::run_until(Duration patience, const std::function<bool()>& done) {
  const TimePoint until = timeline_.now() + patience;
  while (!failed()) {
    if (done()) return true;
    if (!timeline_.step(until) && timeline_.now() >= until) return done();
  }
  return false;
}

void World::act_again(Workload& workload, TimePoint until) {
  if (now() >= until || failed()) return;
  workload.act();
  timeline_.in(draw(Duration(0), shape_.between_actions * 2), [this, &workload, until] { act_again(workload, until); });
}

void World::run(Workload& workload) {
  workload_ = &workload;
  for (const auto& engine : engines_) {
    engine->start();
    workload.started(*engine);
  }
  Faults faults(*this, workload);
  const TimePoint until = now() + shape_.length;
  act_again(workload, until);
  Task fault_again = [&] {
    if (now() >= until || failed()) return;
    faults.one();
    timeline_.in(draw(Duration(0), shape_.between_faults * 2), [&fault_again] { fault_again(); });
  };
  timeline_.in(draw(Duration(0), shape_.between_faults * 2), [&fault_again] { fault_again(); });
  run_until(shape_.length, [] { return false; });
  if (!failed()) {
    history_.say("all faults end");
    faults.end();
    settle(workload);
  }
  // What is still planned refers to this frame: nothing of it may happen later.
  workload_ = nullptr;
}

void World::settle(Workload& workload) {
  constexpr Duration kPatience = seconds(100);  // more than the longest deadline, pause and lease
  if (!run_until(kPatience, [&] { return workload.at_rest(); })) {
    if (!failed()) fail("I3: something has not ended {} s after all faults", kPatience / seconds(1));
    return;
  }
  workload.check_recovered();
}

}  // namespace kvferry::simulator
