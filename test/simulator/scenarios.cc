#include "test/simulator/scenarios.h"

#include "test/simulator/parcels.h"
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

namespace {

void draw_caches(Random& random, Parcels::Options& options) {
  CacheShape& owner = options.owner_cache;
  CacheShape& reader = options.reader_cache;
  owner.head_size = reader.head_size = uint32_t{4} << random.below(4);
  owner.layers = reader.layers = 1 + static_cast<uint32_t>(random.below(3));
  owner.heads = reader.heads = random.below(3) == 0 ? 1 : 2;
  for (CacheShape* shape : {&owner, &reader}) {
    shape->block_tokens = random.below(3) == 0 ? 8 : 4;
    shape->page = random.below(2) == 0 ? PageShape::head_major : PageShape::token_major;
    shape->order = static_cast<KvOrder>(random.below(3));
    shape->tp_size = random.below(4) == 0 ? 2 : 1;
  }
  reader.blocks = 60;
  if (random.below(10) == 0) {  // parcels of many slices
    owner.head_size = reader.head_size = 8192;
    owner.block_tokens = reader.block_tokens = 4;
    owner.layers = reader.layers = 1;
    owner.blocks = 8;
    reader.blocks = 16;
  }
}

// What may stand on one host and what lies in devices. Drawn apart from everything else: a seed without either is the
// run that it was before there were any.
void draw_machines(uint64_t seed, Shape& shape, Parcels::Options& options) {
  SeededRandom random(seed ^ 0xde71d37);  // chosen so that the seeds kept in simulator_test stay what they were
  if (random.below(2) == 0) return;
  if (random.below(2) == 0) {
    shape.fittings.hub = std::make_shared<loopback::Hub>(microseconds(random.below(2) * random.below(3000)));
    options.digest_every = 2;
  }
  for (CacheShape* cache : {&options.owner_cache, &options.reader_cache})
    if (random.below(2) == 0) cache->kind = MemoryKind::fake;
  if (options.owner_cache.kind == MemoryKind::fake) options.events = static_cast<unsigned>(random.below(2)) * 30;
  options.cut_short = static_cast<unsigned>(random.below(2)) * 30;
  if (random.below(2) == 0) shape.fittings.staging_bytes = size_t{256} << 10;
}

Verdict run_parcels_in(uint64_t seed, bool recording, Random& random, Shape shape, Parcels::Options options) {
  shape.engines = Parcels::Options::machines(options);
  World world(random.next(), recording, shape);
  Parcels parcels(world, options);
  world.run(parcels);
  Verdict verdict = verdict_of(seed, world);
  const Parcels::Tally& tally = parcels.tally();
  verdict.tally = fmt::format("{} published, {} accepted, {} refused", tally.published, tally.accepted, tally.refused);
  return verdict;
}

}  // namespace

Verdict run_parcels(uint64_t seed, bool recording) {
  SeededRandom random(seed ^ 0x5eed);
  Shape shape;
  shape.wires = draw_wires(random);
  shape.length = seconds(10 + static_cast<int64_t>(random.below(15)));
  shape.between_actions = milliseconds(100 + static_cast<int64_t>(random.below(200)));
  Parcels::Options options;
  draw_caches(random, options);
  // Small windows over long wires are for small parcels: large ones would not arrive by any deadline.
  if (options.owner_cache.head_size >= 32) shape.wires.buffer_bytes = size_t{256} << 10;
  options.owners = 1 + random.below(2);
  options.readers = 1 + random.below(3);
  if (random.below(40) == 0) {
    options.owners = 5;
    options.readers = 20;
    options.owner_cache.tp_size = options.reader_cache.tp_size = 1;
    shape.between_actions = milliseconds(30);
  }
  if (random.below(4) == 0) options.longest_lease = seconds(60);
  draw_machines(seed, shape, options);
  return run_parcels_in(seed, recording, random, shape, options);
}

// 5 prefillers, 20 decoders and some 2000 parcels, with leases of 5 to 20 seconds.
Verdict run_crowd(uint64_t seed, bool recording) {
  SeededRandom random(seed ^ 0xc404d);
  Shape shape;
  shape.wires = draw_wires(random);
  shape.wires.buffer_bytes = size_t{256} << 10;
  shape.length = seconds(60);
  shape.between_actions = milliseconds(14);
  Parcels::Options options;
  options.owners = 5;
  options.readers = 20;
  options.owner_cache.blocks = 200;
  options.reader_cache.blocks = 60;
  options.owner_cache.head_size = options.reader_cache.head_size = uint32_t{4} << random.below(4);
  for (CacheShape* cache : {&options.owner_cache, &options.reader_cache}) {
    cache->block_tokens = random.below(2) == 0 ? 8 : 4;
    cache->order = static_cast<KvOrder>(random.below(3));
  }
  draw_machines(seed, shape, options);
  return run_parcels_in(seed, recording, random, shape, options);
}

const std::vector<std::string>& scenario_names() {
  static const std::vector<std::string> names = {"transfers", "parcels", "crowd"};
  return names;
}

Scenario find_scenario(const std::string& name) {
  if (name == "transfers") return run_transfers;
  if (name == "parcels") return run_parcels;
  if (name == "crowd") return run_crowd;
  return nullptr;
}

}  // namespace kvferry::simulator
