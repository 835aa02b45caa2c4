#include "test/simulator/parcels.h"

// What must hold of parcels, checked after every turn of an engine on what that turn can have changed.

namespace kvferry::simulator {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Duration kWatched = milliseconds(1500);
// The heartbeat window, the owner's grace for readers, and room: so long after its end a read has no claim.
constexpr Duration kReaderFails = seconds(3 + 1 + 5 + 3);
// How late an extension, sent while its reader still reads, may be handled: as late as wires and a stopped owner allow.
constexpr Duration kExtensionHandled = seconds(15);

}  // namespace

void Parcels::after_turn(SimEngine& engine) {
  Machine& machine = machines_[engine.host()];
  const std::map<uint64_t, ReadingPtr> all = machine.readings;
  for (const auto& [serial, reading] : all) {
    if (reading->outcome) {
      machine.readings.erase(serial);
      ended(engine, *reading);
    } else if (reading->deadline <= engine.loop().now()) {
      world_.fail("I3: the read of {} by {} has no outcome at its deadline", reading->request->id, engine.name());
    }
    if (world_.failed()) return;
  }
  take_released(engine);
  if (!world_.failed()) check_held(engine);
  if (!world_.failed()) book_.after_turn(engine);
}

// ---- the owner

void Parcels::take_released(SimEngine& engine) {
  for (const ParcelReleased& released : engine.parcel_events().take()) {
    auto entry = machines_[engine.host()].held.extract(released.transfer_id);
    if (entry.empty())
      return world_.fail("I2: {} gives back {}, which it does not hold", engine.name(), released.transfer_id);
    Request& request = *entry.mapped();
    for (Share& share : request.shares)
      if (share.engine == &engine) take_back(engine, request, share, released.why);
  }
}

// The blocks are the caller's again: it may write into them now.
void Parcels::take_back(SimEngine& engine, Request& request, Share& share, ReleaseReason why) {
  world_.history().mark(301, request.serial * 8 + static_cast<uint64_t>(why));
  world_.history().say("{} has the blocks of {} back: {}", engine.name(), request.id, to_string(why));
  share.given_back = true;
  Cache& cache = *machines_[engine.host()].cache;
  if (const std::string where = cache.differs(share.blocks, request.serial, 0, request.tokens);
      share.filled && !where.empty())
    return world_.fail("{} changed at {} while it was published: {}", request.id, engine.name(), where);
  cache.poison(share.blocks);
  cache.give_back(share.blocks);
  if (why == ReleaseReason::settled && request.readings == 0)
    return world_.fail("I2: {} counts as settled and nobody has read it", request.id);
  if (why == ReleaseReason::expired && engine.loop().now() < share.expires)
    return world_.fail("{} expires before its lease ends", request.id);
  if (request.must_work && why != ReleaseReason::settled)
    world_.fail("I5: all faults are over and {} ends as {}", request.id, to_string(why));
}

// A claim that lives may extend the lease by one from then on, up to the owner's limit.
bool Parcels::may_hold(const SimEngine& engine, const Request& request, const Share& share) const {
  const TimePoint now = engine.loop().now();
  if (now < share.expires) return true;
  if (request.readings == 0 || world_.now() >= request.last_deadline + request.lease + kExtensionHandled) return false;
  return now < share.expires - request.lease + SimEngine::kLongestLease;
}

void Parcels::check_held(SimEngine& engine) {
  for (const auto& [id, request] : machines_[engine.host()].held)
    for (const Share& share : request->shares) {
      if (share.engine != &engine) continue;
      if (!may_hold(engine, *request, share))
        return world_.fail("I3: {} still holds {} after its lease", engine.name(), id);
      // A claim ends with its read: nobody waits for the lease because a decoder has died, or is done.
      if (request->readings == 0 || request->ended < request->readings) continue;
      if (world_.now() - request->last_end < kReaderFails) continue;
      if (engine.loop().paused_until() > request->last_end) continue;  // it could not notice
      const auto status = engine.parcel_owner().status(id);
      if (status && status->readers > 0)
        return world_.fail("I2: {} holds {} for a read that ended {:.1f} s ago", engine.name(), id,
                           kvferry::seconds(world_.now() - request->last_end));
    }
}

// ---- the reader

void Parcels::ended(SimEngine& engine, Reading& reading) {
  reading.done = true;
  ++reading.request->ended;
  reading.request->last_end = world_.now();
  const ParcelOutcome& outcome = *reading.outcome;
  Request& request = *reading.request;
  world_.history().mark(302, request.serial * 16 + static_cast<uint64_t>(outcome.state));
  world_.history().say("the read of {} by {} ends: {}{}{}", request.id, engine.name(), to_string(outcome.state),
                       outcome.status.ok() ? "" : ", ",
                       outcome.status.ok() ? std::string() : outcome.status.error().to_string());
  Cache& cache = *machines_[engine.host()].cache;
  if (outcome.state == ReadState::accepted) {
    ++tally_.accepted;
    check_accepted(reading);
    if (world_.failed()) return;
  } else {
    ++tally_.refused;
    if (request.must_work)
      return world_.fail("I5: all faults are over and the read of {} ends as {}: {}", request.id,
                         to_string(outcome.state), outcome.status.ok() ? "" : outcome.status.error().to_string());
    cache.poison(reading.blocks);
  }
  // I4: whatever the outcome was, the blocks are quiet.
  cache.watch(book_, reading.blocks, world_.now() + kWatched,
              fmt::format("blocks of the read of {} that ended as {}", request.id, to_string(outcome.state)),
              [&cache, blocks = reading.blocks] { cache.give_back(blocks); });
}

void Parcels::check_accepted(const Reading& reading) {
  Request& request = *reading.request;
  const Cache& cache = *machines_[reading.engine->host()].cache;
  if (reading.fingerprint != request.fingerprint)
    return world_.fail("I1: {} was accepted under another fingerprint", request.id);
  const std::string where = cache.differs(reading.blocks, request.serial, reading.first, request.tokens);
  if (!where.empty())
    return world_.fail("I1: {} accepted {} and does not hold what was published: {}", reading.engine->name(),
                       request.id, where);
  for (const RankId owner : owners_to_settle(cache.layout().rank, options_.owner_cache.tp_size, 1)) {
    Share& share = request.shares[owner.tp];
    if (!share.published || !share.filled)
      return world_.fail("I1: {} was accepted before it was published", request.id);
    if (share.group && *share.group != reading.instance)
      return world_.fail("{} of {} was accepted by decoders {} and {}", request.id, share.engine->name(), *share.group,
                         reading.instance);
    share.group = reading.instance;
  }
}

// ---- the end

bool Parcels::at_rest() {
  resting_ = true;
  if (computing_ > 0) return false;
  for (size_t i = 0; i < machines_.size(); ++i)
    if (!machines_[i].readings.empty() || !machines_[i].held.empty() || world_.engine(i).loop().paused()) return false;
  return true;
}

void Parcels::check_recovered() {
  world_.run_until(seconds(14), [] { return false; });
  // An idle engine has no turns, and so nobody has looked.
  for (size_t i = 0; i < world_.engines() && !world_.failed(); ++i) book_.check(world_.engine(i));
  if (!world_.failed()) check_reach();
  if (!world_.failed()) check_tables();
}

// I5: every decoder gets a parcel from every prefiller, whatever restarted.
void Parcels::check_reach() {
  std::vector<ReadingPtr> all;
  for (size_t owner = 0; owner < options_.owners; ++owner)
    for (size_t reader = 0; reader < options_.readers; ++reader) {
      auto request = std::make_shared<Request>();
      request->serial = next_serial_++;
      request->id = fmt::format("t{}", request->serial);
      request->owner = owner;
      request->reader = reader;
      request->tokens = options_.owner_cache.block_tokens;
      request->lease = seconds(60);
      request->fingerprint = "model";
      request->must_work = true;
      for (size_t rank = 0; rank < options_.owner_cache.tp_size; ++rank) {
        SimEngine& engine = world_.engine(owner_machine(owner, rank));
        auto blocks = machines_[engine.host()].cache->take(1);
        if (blocks.empty()) return world_.fail("I2: {} has lost all its blocks", engine.name());
        request->shares.push_back(Share{&engine, engine.life(), std::move(blocks), false, false, false, {}, {}});
      }
      publish(request);
      for (size_t rank = 0; rank < options_.reader_cache.tp_size; ++rank) {
        ReadingPtr reading = read(request, reader, rank, false);
        if (!reading) return world_.fail("I4: a decoder has lost all its blocks");
        all.push_back(std::move(reading));
      }
      // A decoder has few blocks: one parcel after another.
      const bool done = world_.run_until(seconds(20), [&] {
        for (const ReadingPtr& reading : all)
          if (!reading->done) return false;
        for (const Share& share : request->shares)
          if (!share.given_back) return false;
        return true;
      });
      if (!done && !world_.failed()) world_.fail("I5: 20 s after all faults {} is not settled", request->id);
      if (world_.failed()) return;
    }
}

// I6: tables are as they were at the start.
void Parcels::check_tables() {
  world_.run_until(seconds(8), [] { return false; });
  for (size_t i = 0; i < world_.engines() && !world_.failed(); ++i) {
    SimEngine& engine = world_.engine(i);
    book_.check(engine);
    if (engine.gauge("kvferry_parcels") != 0 || engine.gauge("kvferry_parcel_claims") != 0)
      world_.fail("I6: {} keeps {} parcels and {} claims", engine.name(), engine.gauge("kvferry_parcels"),
                  engine.gauge("kvferry_parcel_claims"));
    const CacheShape& shape = is_owner(engine) ? options_.owner_cache : options_.reader_cache;
    if (machines_[i].cache->free_blocks() != shape.blocks)
      world_.fail("I2: {} of {} blocks of {} came back", machines_[i].cache->free_blocks(), shape.blocks,
                  engine.name());
  }
}

}  // namespace kvferry::simulator
