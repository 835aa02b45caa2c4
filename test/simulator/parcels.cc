#include "test/simulator/parcels.h"

#include <algorithm>

namespace kvferry::simulator {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr size_t kRemembered = 40;  // requests that later actions may name

}  // namespace

Parcels::Parcels(World& world, Options options)
    : world_(world), options_(options), book_(world), machines_(world.engines()) {}

Parcels::~Parcels() = default;

std::string Parcels::instance_id(const SimEngine& engine) const {
  const size_t tp = is_owner(engine) ? options_.owner_cache.tp_size : options_.reader_cache.tp_size;
  const size_t base = is_owner(engine) ? 0 : reader_machine(0, 0);
  return fmt::format("{}-{}", is_owner(engine) ? "prefiller" : "decoder", (engine.host() - base) / tp);
}

// ---- engines come and go

void Parcels::started(SimEngine& engine) {
  Machine& machine = machines_[engine.host()];
  const bool owner = is_owner(engine);
  const CacheShape& shape = owner ? options_.owner_cache : options_.reader_cache;
  const size_t rank = (engine.host() - (owner ? 0 : reader_machine(0, 0))) % shape.tp_size;
  machine.cache = std::make_unique<Cache>(world_, engine, shape, static_cast<uint32_t>(rank));
  // A new process is a new instance: what was published before is not its own (I5).
  const Status status = engine.parcel_owner().set_cache(fmt::format("{}/{}", instance_id(engine), engine.life()),
                                                        machine.cache->layout());
  if (!status.ok()) world_.fail("{} cannot describe its cache: {}", engine.name(), status.error().to_string());
}

void Parcels::ending(SimEngine& engine) {
  Machine& machine = machines_[engine.host()];
  for (const auto& [serial, reading] : machine.readings) {
    reading->done = true;
    ++reading->request->ended;
    reading->request->last_end = world_.now();
  }
  machine.readings.clear();
  for (const auto& [id, request] : machine.held)
    for (Share& share : request->shares)
      if (share.engine == &engine) share.given_back = true;
  machine.held.clear();
  book_.check(engine);
  book_.forget_all(engine);
}

// ---- actions

void Parcels::act() {
  const uint64_t what = world_.random().below(100);
  if (what < 55)
    new_request();
  else if (what < 70)
    cancel_one();
  else if (what < 85)
    release_one();
  else if (const RequestPtr request = draw_request())
    read_all(request, world_.random().below(options_.readers), true);
}

Parcels::RequestPtr Parcels::draw_request() {
  if (requests_.empty()) return nullptr;
  return requests_[world_.random().below(requests_.size())];
}

// The request is routed: the prefiller publishes when it is done, the decoder reads when it is told; both in any order.
void Parcels::new_request() {
  auto request = std::make_shared<Request>();
  request->serial = next_serial_++;
  request->id = fmt::format("t{}", request->serial);
  request->owner = world_.random().below(options_.owners);
  request->reader = world_.random().below(options_.readers);
  const size_t blocks = 1 + world_.random().below(options_.most_blocks);
  const uint32_t full = static_cast<uint32_t>(blocks) * options_.owner_cache.block_tokens;
  request->tokens = full - static_cast<uint32_t>(world_.random().below(options_.owner_cache.block_tokens));
  request->lease = world_.draw(options_.least_lease, options_.longest_lease);
  request->fingerprint = fmt::format("model, prompt {}", request->serial);
  for (size_t rank = 0; rank < options_.owner_cache.tp_size; ++rank)
    if (!world_.engine(owner_machine(request->owner, rank)).may_call()) return;
  for (size_t rank = 0; rank < options_.owner_cache.tp_size; ++rank) {
    SimEngine& engine = world_.engine(owner_machine(request->owner, rank));
    Share share;
    share.engine = &engine;
    share.life = engine.life();
    share.blocks = machines_[engine.host()].cache->take(blocks);
    if (share.blocks.empty()) {
      for (const Share& taken : request->shares) machines_[taken.engine->host()].cache->give_back(taken.blocks);
      return;
    }
    request->shares.push_back(std::move(share));
  }
  requests_.push_back(request);
  if (requests_.size() > kRemembered) requests_.erase(requests_.begin());
  const bool announced = world_.chance(50);
  if (announced)
    for (const Share& share : request->shares)
      [[maybe_unused]] const Status ignored = share.engine->parcel_owner().announce(request->id, request->lease);
  const Duration computing = world_.chance(40) ? Duration(0) : world_.draw(milliseconds(0), seconds(1));
  const Duration routing = world_.draw(milliseconds(0), milliseconds(world_.chance(80) ? 300 : 5000));
  world_.history().say("request {}: {} tokens from prefiller {} to decoder {}, lease {:.1f} s{}", request->id,
                       request->tokens, request->owner, request->reader, kvferry::seconds(request->lease),
                       announced ? ", announced" : "");
  if (computing == Duration(0))
    publish(request);
  else
    later(computing, [this, request] { publish(request); });
  if (world_.chance(92)) world_.timeline().in(routing, [this, request] { read_all(request, request->reader, false); });
}

void Parcels::later(Duration wait, const Task& publish) {
  ++computing_;
  world_.timeline().in(wait, [this, publish] {
    --computing_;
    publish();
  });
}

void Parcels::publish(const RequestPtr& request) {
  for (size_t rank = 0; rank < request->shares.size(); ++rank) publish_share(request, rank);
}

void Parcels::publish_share(const RequestPtr& request, size_t rank) {
  Share& share = request->shares[rank];
  SimEngine& engine = *share.engine;
  if (engine.life() != share.life || !engine.running() || world_.failed()) return;
  if (!engine.may_call()) {  // a stopped process calls nothing
    later(milliseconds(5), [this, request, rank] { publish_share(request, rank); });
    return;
  }
  Machine& machine = machines_[engine.host()];
  ParcelSpec spec;
  if (!request->must_work && options_.events > 0 && world_.chance(options_.events)) {
    spec.event = fill_later(request, rank);
  } else {
    machine.cache->fill(share.blocks, request->serial, request->tokens);
    share.filled = true;
  }
  spec.transfer_id = request->id;
  spec.blocks = {BlockList{0, share.blocks}};
  spec.tokens = request->tokens;
  spec.fingerprint = request->fingerprint;
  spec.lease = request->lease;
  spec.digest = request->serial % options_.digest_every == 0;
  share.expires = engine.loop().now() + request->lease;
  share.published = true;
  machine.held.emplace(request->id, request);
  const Status status = engine.parcel_owner().publish(std::move(spec));
  world_.history().say("{} publishes {}: {}", engine.name(), request->id,
                       status.ok() ? "ok" : status.error().to_string());
  if (status.ok()) {
    ++tally_.published;
    return take_released(engine);
  }
  machine.held.erase(request->id);  // an Error: the blocks never were the parcel's
  share.given_back = true;
  machine.cache->poison(share.blocks);
  machine.cache->give_back(share.blocks);
}

// The device writes the blocks while the parcel is published already, or fails at it.
EventId Parcels::fill_later(const RequestPtr& request, size_t rank) {
  SimEngine& engine = *request->shares[rank].engine;
  const EventId event = engine.device().create_event();
  const bool failing = world_.chance(10);
  world_.timeline().in(world_.draw(milliseconds(0), milliseconds(800)), [this, request, rank, event, failing] {
    Share& written = request->shares[rank];
    if (!written.engine->running() || written.engine->life() != written.life) return;
    if (!written.given_back && !failing) {
      machines_[written.engine->host()].cache->fill(written.blocks, request->serial, request->tokens);
      written.filled = true;
    }
    written.engine->device().signal(event, failing);
  });
  return event;
}

// What used the blocks before, and writes them until its event: bytes that came earlier are gone then.
EventId Parcels::free_later(const ReadingPtr& reading) {
  const EventId event = reading->engine->device().create_event();
  const bool failing = world_.chance(10);
  reading->in_use = true;
  world_.timeline().in(world_.draw(milliseconds(0), milliseconds(800)), [this, reading, event, failing] {
    SimEngine& engine = *reading->engine;
    if (!engine.running() || engine.life() != reading->life) return;
    if (!reading->outcome) machines_[engine.host()].cache->poison(reading->blocks);
    reading->in_use = failing;
    engine.device().signal(event, failing);
  });
  return event;
}

void Parcels::read_all(const RequestPtr& request, size_t instance, bool again) {
  if (resting_ && !request->must_work) return;
  const bool more = !again && world_.chance(10);
  for (size_t rank = 0; rank < options_.reader_cache.tp_size; ++rank) read(request, instance, rank, more);
  // From a microsecond to a quarter of a second: reads take that long, as the wires are.
  if (options_.cut_short > 0 && !request->must_work && world_.chance(options_.cut_short))
    world_.timeline().in(microseconds(uint64_t{1} << world_.random().below(18)), [this, request] {
      if (!world_.failed()) release_at_owner(request, true);
    });
}

Parcels::ReadingPtr Parcels::read(const RequestPtr& request, size_t instance, size_t rank, bool more) {
  SimEngine& engine = world_.engine(reader_machine(instance, rank));
  if (!engine.may_call() || world_.failed()) return nullptr;
  Machine& machine = machines_[engine.host()];
  auto reading = std::make_shared<Reading>();
  reading->request = request;
  reading->engine = &engine;
  reading->life = engine.life();
  reading->instance = instance;
  reading->blocks = machine.cache->take((request->tokens - 1) / machine.cache->block_tokens() + 1);
  if (reading->blocks.empty()) return nullptr;
  machine.cache->poison(reading->blocks);
  reading->first = world_.chance(25) ? static_cast<uint32_t>(world_.random().below(request->tokens)) : 0;
  reading->fingerprint = !request->must_work && world_.chance(4) ? "another model" : request->fingerprint;

  ParcelRead asked;
  asked.transfer_id = request->id;
  if (world_.chance(50))
    asked.expected_instance_id =
        fmt::format("{}/{}", instance_id(*request->shares.front().engine), request->shares.front().life);
  ParallelRank mine = machine.cache->layout().rank;
  for (const RankId owner : owners_to_settle(mine, options_.owner_cache.tp_size, 1)) {
    auto peer = engine.core().find_or_add_peer(request->shares[owner.tp].engine->address());
    KVF_CHECK(peer.ok());
    asked.owners.push_back(*peer);
  }
  // With several owner ranks lives may differ, and then so do their names.
  if (request->shares.size() > 1) asked.expected_instance_id.clear();
  asked.group_instance_id = fmt::format("decoder-{}", instance);
  asked.fingerprint = reading->fingerprint;
  asked.layout = machine.cache->shared_layout();
  asked.blocks = {BlockList{0, reading->blocks}};
  asked.first_token = reading->first;
  asked.end_token = world_.chance(70) || request->must_work ? request->tokens : 0;
  asked.more = more;
  if (!request->must_work && options_.events > 0 && world_.chance(options_.events)) asked.event = free_later(reading);
  asked.deadline = reading->deadline =
      engine.loop().now() +
      (request->must_work ? seconds(15) : world_.draw(milliseconds(world_.chance(20) ? 1 : 200), milliseconds(15000)));
  world_.history().mark(300, request->serial);
  world_.history().say("{} of decoder {} reads {} from token {}{}", engine.name(), instance, request->id,
                       reading->first, more ? ", more to come" : "");
  const uint64_t serial = next_serial_++;
  ++request->readings;
  request->last_deadline = std::max(request->last_deadline, world_.now() + (reading->deadline - engine.loop().now()));
  machine.readings.emplace(serial, reading);
  reading->id = engine.parcel_reader().read(
      std::move(asked), [this, weak = std::weak_ptr(reading)](const ParcelOutcome& outcome) {
        const ReadingPtr held = weak.lock();
        if (!held || held->done) return;
        if (held->outcome) return world_.fail("a read of {} ended twice", held->request->id);
        if (held->in_use && outcome.state == ReadState::accepted)
          return world_.fail("a read of {} ended well before its event", held->request->id);
        held->outcome = outcome;
      });
  return reading;
}

void Parcels::cancel_one() {
  const size_t readers = world_.engines() - reader_machine(0, 0);
  SimEngine& engine = world_.engine(reader_machine(0, 0) + world_.random().below(readers));
  if (!engine.may_call()) return;
  auto& readings = machines_[engine.host()].readings;
  if (readings.empty()) return;
  auto at = readings.begin();
  std::advance(at, static_cast<ptrdiff_t>(world_.random().below(readings.size())));
  const ReadingPtr reading = at->second;
  world_.history().say("{} cancels its read of {}", engine.name(), reading->request->id);
  engine.parcel_reader().cancel(reading->id);
  if (!reading->outcome) return world_.fail("I4: cancel of {} returned without an outcome", reading->request->id);
  readings.erase(at);
  ended(engine, *reading);
}

// By the owner's own caller (the proxy's DELETE), or by a reader.
void Parcels::release_one() {
  const RequestPtr request = draw_request();
  if (!request) return;
  const bool force = world_.chance(50);
  if (world_.chance(50)) {
    SimEngine& reader = world_.engine(reader_machine(request->reader, 0));
    if (!reader.may_call()) return;
    world_.history().say("{} releases {}{}", reader.name(), request->id, force ? " by force" : "");
    for (const Share& share : request->shares) {
      auto peer = reader.core().find_or_add_peer(share.engine->address());
      KVF_CHECK(peer.ok());
      reader.parcel_reader().release(*peer, request->id, force, reader.loop().now() + seconds(10));
    }
    return;
  }
  release_at_owner(request, force);
}

void Parcels::release_at_owner(const RequestPtr& request, bool force) {
  for (Share& share : request->shares) {
    SimEngine& engine = *share.engine;
    if (!engine.may_call() || engine.life() != share.life) continue;
    world_.history().say("{} releases {} itself{}", engine.name(), request->id, force ? ", by force" : "");
    if (world_.chance(20)) engine.parcel_owner().withdraw(request->id);
    engine.parcel_owner().release(request->id, force);
    take_released(engine);
    if (force && share.published && !share.given_back && !world_.failed())
      return world_.fail("I2: {} is released by force and its blocks are not back", request->id);
  }
}

}  // namespace kvferry::simulator
