#include "test/simulator/scenarios.h"

#include "test/simulator/transfers.h"

namespace kvferry::simulator {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

Wires::Options draw_wires(Random& random) {
  Wires::Options wires;
  const uint64_t kind = random.below(3);  // one rack, one room, far away
  wires.least_delay = kind == 0 ? microseconds(5) : kind == 1 ? microseconds(100) : milliseconds(10);
  wires.jitter = wires.least_delay * static_cast<int64_t>(1 + random.below(10));
  wires.buffer_bytes = size_t{512} << random.below(9);
  wires.partial = static_cast<unsigned>(random.below(60));
  return wires;
}

Verdict verdict_of(uint64_t seed, World& world) {
  Verdict verdict;
  verdict.seed = seed;
  verdict.failure = world.failure();
  verdict.history = world.history().lines();
  verdict.digest = world.history().digest();
  verdict.events = world.timeline().events();
  return verdict;
}

}  // namespace

Verdict run_transfers(uint64_t seed, bool recording) {
  SeededRandom random(seed);
  Shape shape;
  shape.wires = draw_wires(random);
  shape.engines = 2 + random.below(3);
  shape.length = seconds(5 + static_cast<int64_t>(random.below(10)));
  Transfers::Options options;
  options.slot_bytes = size_t{64} << random.below(7);
  if (random.below(12) == 0) {  // transfers of many chunks and slices, over both kinds of lanes
    shape.engines = 2;
    options.slot_bytes = size_t{512} << 10;
    options.slots = 6;
    shape.wires.buffer_bytes = size_t{256} << 10;
    shape.between_actions = milliseconds(150);
  } else if (random.below(20) == 0) {
    shape.engines = 8 + random.below(8);
  }
  World world(random.next(), recording, shape);
  Transfers transfers(world, options);
  world.run(transfers);
  Verdict verdict = verdict_of(seed, world);
  const Transfers::Tally& tally = transfers.tally();
  verdict.tally = fmt::format("{} ok, {} failed, {} unknown", tally.ok, tally.failed, tally.unknown);
  return verdict;
}

const std::vector<std::string>& scenario_names() {
  static const std::vector<std::string> names = {"transfers"};
  return names;
}

Scenario find_scenario(const std::string& name) {
  if (name == "transfers") return run_transfers;
  return nullptr;
}

}  // namespace kvferry::simulator
