#include "test/simulator/faults.h"

namespace kvferry::simulator {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

}  // namespace

Faults::Faults(World& world, Workload& workload) : world_(world), workload_(workload) {
  const auto all = static_cast<size_t>(Kind::count);
  const unsigned share = world.chance(20) ? 100 : 30;
  for (size_t kind = 0; kind < all; ++kind)
    if (world.chance(share)) kinds_.push_back(static_cast<Kind>(kind));
}

void Faults::one() {
  if (kinds_.empty()) return;
  switch (kinds_[world_.random().below(kinds_.size())]) {
    case Kind::kill:
      return kill(false);
    case Kind::power:
      return kill(true);
    case Kind::pause:
      return pause();
    case Kind::partition:
      return partition(false);
    case Kind::one_way:
      return partition(true);
    case Kind::isolate:
      return isolate();
    case Kind::reset:
      world_.wires().reset_any(false);
      return;
    case Kind::half_reset:
      world_.wires().reset_any(true);
      return;
    case Kind::swallow:
      world_.wires().swallow_any();
      return;
    case Kind::slow_link:
      return slow_link();
    case Kind::slow_engine:
      return slow_engine();
    case Kind::count:
      return;
  }
}

SimEngine* Faults::draw_running() {
  SimEngine& engine = world_.engine(world_.random().below(world_.engines()));
  return engine.running() && !engine.loop().in_turn() ? &engine : nullptr;
}

void Faults::kill(bool silently) {
  SimEngine* engine = draw_running();
  if (engine == nullptr) return;
  workload_.ending(*engine);
  engine->kill(silently);
  restart_later(*engine);
}

void Faults::restart_later(SimEngine& engine) {
  world_.timeline().in(world_.draw(milliseconds(1), seconds(6)), [this, &engine] {
    if (over_ || engine.running()) return;
    engine.start();
    workload_.started(engine);
  });
}

void Faults::pause() {
  SimEngine* engine = draw_running();
  if (engine == nullptr) return;
  const Duration length =
      world_.chance(50) ? world_.draw(milliseconds(1), milliseconds(500)) : world_.draw(milliseconds(500), seconds(6));
  world_.history().say("{} is stopped for {:.3f} s", engine->name(), kvferry::seconds(length));
  engine->loop().pause_until(world_.now() + length);
}

void Faults::partition(bool one_way) {
  const HostIndex a = world_.random().below(world_.engines());
  const HostIndex b = world_.random().below(world_.engines());
  if (a == b) return;
  const Duration length = world_.draw(milliseconds(5), seconds(6));
  world_.history().say("the wires from {} to {} are cut for {:.3f} s{}", a, b, kvferry::seconds(length),
                       one_way ? "" : ", both ways");
  world_.wires().block(a, b);
  if (!one_way) world_.wires().block(b, a);
  world_.timeline().in(length, [this, a, b] {
    world_.wires().unblock(a, b);
    world_.wires().unblock(b, a);
  });
}

void Faults::isolate() {
  const HostIndex lone = world_.random().below(world_.engines());
  const Duration length = world_.draw(milliseconds(5), seconds(6));
  world_.history().say("all wires of {} are cut for {:.3f} s", lone, kvferry::seconds(length));
  const auto each = [this, lone](auto&& change) {
    for (HostIndex other = 0; other < world_.engines(); ++other)
      if (other != lone) change(lone, other), change(other, lone);
  };
  each([this](HostIndex from, HostIndex to) { world_.wires().block(from, to); });
  world_.timeline().in(
      length, [this, each] { each([this](HostIndex from, HostIndex to) { world_.wires().unblock(from, to); }); });
}

void Faults::slow_link() {
  const HostIndex from = world_.random().below(world_.engines());
  const HostIndex to = world_.random().below(world_.engines());
  const Duration per_byte(static_cast<int64_t>(world_.random().below(2000)));
  world_.history().say("the wire from {} to {} takes {} ns a byte", from, to, per_byte.count());
  world_.wires().throttle(from, to, per_byte);
  world_.timeline().in(world_.draw(milliseconds(10), seconds(5)),
                       [this, from, to] { world_.wires().throttle(from, to, Duration(0)); });
}

void Faults::slow_engine() {
  SimEngine* engine = draw_running();
  if (engine == nullptr) return;
  const Duration cost = world_.draw(microseconds(50), milliseconds(20));
  world_.history().say("each turn of {} takes {:.6f} s now", engine->name(), kvferry::seconds(cost));
  engine->loop().set_turn_cost(cost);
  world_.timeline().in(world_.draw(milliseconds(10), seconds(5)), [engine, life = engine->life()] {
    if (engine->running() && engine->life() == life) engine->loop().set_turn_cost(microseconds(5));
  });
}

void Faults::end() {
  over_ = true;
  for (HostIndex from = 0; from < world_.engines(); ++from)
    for (HostIndex to = 0; to < world_.engines(); ++to) {
      world_.wires().throttle(from, to, Duration(0));
      world_.wires().unblock(from, to);
    }
  for (size_t i = 0; i < world_.engines(); ++i) {
    SimEngine& engine = world_.engine(i);
    if (!engine.running()) {
      engine.start();
      workload_.started(engine);
    }
    engine.loop().set_turn_cost(microseconds(5));
  }
}

}  // namespace kvferry::simulator
