#include "test/simulator/transfers.h"

// What must hold of transfers, checked after every turn of an engine on what that turn can have changed.

namespace kvferry::simulator {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// How long memory that was given back is watched before it is used again.
constexpr Duration kWatched = seconds(2);

const char* name_of(Operation operation) {
  return operation == Operation::read ? "read" : "write";
}

}  // namespace

std::string Transfers::describe(const Live& live) const {
  size_t bytes = 0;
  for (const Piece& piece : live.pieces) bytes += piece.length;
  return fmt::format("#{}: {} {} {}, life {}, {} bytes in {} pieces of regions {}..., {:.3f} s", live.serial,
                     live.initiator->name(), live.operation == Operation::read ? "reads from" : "writes to",
                     live.owner->name(), live.owner_life, bytes, live.pieces.size(),
                     live.pieces.front().remote->region.id,
                     kvferry::seconds(live.task->deadline - live.task->submitted));
}

void Transfers::after_turn(SimEngine& engine) {
  take_notifications(engine);
  const std::map<uint64_t, LivePtr> all = machines_[engine.host()].live;
  for (const auto& [serial, live] : all) {
    if (live->task->completion->done())
      ended(live);
    else
      check_live(engine, *live);
    if (world_.failed()) return;
  }
  book_.check(engine);
}

void Transfers::check_live(SimEngine& engine, Live& live) {
  if (live.task->deadline <= engine.loop().now())
    return world_.fail("I3: #{} has no outcome at its deadline", live.serial);
  const TransferPhase phase = live.task->phase;
  const bool depends = phase == TransferPhase::moving || phase == TransferPhase::notifying;
  if (depends && !engine.core().view_of(live.peer)->get().ready)
    world_.fail("I3: #{} goes on although its session is over", live.serial);
}

void Transfers::ended(const LivePtr& live) {
  machines_[live->initiator->host()].live.erase(live->serial);
  const Outcome& outcome = live->task->completion->outcome();
  world_.history().mark(
      201, live->serial * 64 + (outcome.status.ok() ? 0u : static_cast<uint64_t>(outcome.status.error().code)));
  world_.history().say("#{} ends: {}{}", live->serial, outcome.status.ok() ? "ok" : outcome.status.error().to_string(),
                       outcome.remote == RemoteQuiet::quiet ? "" : ", far side unknown");
  ++(outcome.status.ok() ? tally_.ok : tally_.failed);
  if (live->must_work && !outcome.status.ok())
    return world_.fail("I5: all faults are over and #{} fails: {}", live->serial, outcome.status.error().to_string());
  if (outcome.status.ok()) {
    if (live->operation == Operation::read)
      check_read(*live);
    else
      check_written(*live);
    if (live->notifies && live->notified == 0 && live->owner->life() == live->owner_life && live->owner->running())
      world_.fail("I8: #{} is ok and its notification was not delivered", live->serial);
  }
  if (world_.failed()) return;
  give_back_local(*live);
  if (live->operation == Operation::write) settle_remote(live, outcome.remote);
}

// What was read is what the region held that was named when the read was asked for: not a later one, not poison.
void Transfers::check_read(const Live& live) {
  if (live.local->epoch != live.local_epoch) return;
  for (size_t i = 0; i < live.pieces.size(); ++i) {
    const Piece& piece = live.pieces[i];
    const uint64_t at = piece.remote_slot * piece.remote->slot_bytes + piece.offset;
    if (is_pattern(live.local->slot(piece.local_slot), piece.length, live.tags[i], at)) continue;
    return world_.fail("I1: #{} is ok and piece {} of it is not what region {} held", live.serial, i,
                       piece.remote->region.id);
  }
}

bool Transfers::remote_holds(const Live& live, size_t i) const {
  const Piece& piece = live.pieces[i];
  return live.owner->life() == live.owner_life && piece.remote->epoch == live.epochs[i];
}

void Transfers::check_written(const Live& live) {
  for (size_t i = 0; i < live.pieces.size(); ++i) {
    const Piece& piece = live.pieces[i];
    if (!remote_holds(live, i)) continue;
    const std::byte* target = piece.remote->slot(piece.remote_slot) + piece.offset;
    if (!is_pattern(target, piece.length, kFromSerial + live.serial, 0))
      return world_.fail("I8: #{} is ok and piece {} of it is not in region {}", live.serial, i,
                         piece.remote->region.id);
  }
}

// I4: from here on nothing may come into this memory, and nothing may be sent from it.
void Transfers::give_back_local(Live& live) {
  if (std::exchange(live.local_given_back, true)) return;
  if (live.local->epoch != live.local_epoch) return;
  for (const Piece& piece : live.pieces) {
    std::byte* local = live.local->slot(piece.local_slot);
    fill_poison(local, options_.slot_bytes);
    book_.watch(*live.initiator, local, options_.slot_bytes, world_.now() + kWatched,
                fmt::format("local memory of {} #{}", name_of(live.operation), live.serial),
                [area = live.local, slot = piece.local_slot] { area->busy[slot] = false; });
  }
}

void Transfers::settle_remote(const LivePtr& live, RemoteQuiet remote) {
  if (remote == RemoteQuiet::quiet) return watch_remote(live);
  ++tally_.unknown;
  // Nobody promises that the far side is quiet. But the lane was reset: where no fault of the wires came between, the
  // reset has arrived after this time, and a receiver that was stopped must not apply what lies in its socket.
  world_.timeline().in(world_.wires().longest_delay() + milliseconds(1), [this, live] {
    if (world_.wires().calm_since(live->initiator->host(), live->owner->host(), live->submitted)) watch_remote(live);
    // Else the slots stay in use until the region or the engine goes.
  });
}

// The target holds bytes from before or bytes of the write, no others; and this is how it stays.
void Transfers::watch_remote(const LivePtr& live) {
  for (size_t i = 0; i < live->pieces.size(); ++i) {
    const Piece& piece = live->pieces[i];
    if (!remote_holds(*live, i)) continue;
    const std::byte* target = piece.remote->slot(piece.remote_slot) + piece.offset;
    std::vector<std::byte> written(piece.length);
    fill_pattern(written.data(), piece.length, kFromSerial + live->serial, 0);
    for (size_t at = 0; at < piece.length; ++at)
      if (target[at] != piece.before[at] && target[at] != written[at])
        return world_.fail("I4: byte {} of piece {} of #{} at {} is neither old nor of the write", at, i, live->serial,
                           live->owner->name());
    book_.watch(*live->owner, target, piece.length, world_.now() + kWatched,
                fmt::format("target of write #{}", live->serial),
                [area = piece.remote, epoch = piece.remote->epoch, slot = piece.remote_slot] {
                  if (area->epoch == epoch) area->busy[slot] = false;
                });
  }
}

void Transfers::take_notifications(SimEngine& engine) {
  for (const ReceivedNotification& received : engine.notifications().take()) {
    const auto found = notifying_.find(std::stoull(received.notification.name));
    if (found == notifying_.end()) return world_.fail("a notification of nothing came to {}", engine.name());
    Live& live = *found->second;
    world_.history().say("{} is notified of #{}", engine.name(), live.serial);
    if (++live.notified > 1) return world_.fail("#{} was notified twice", live.serial);
    if (live.operation == Operation::write && live.owner_life == engine.life()) check_written(live);
  }
}

// ---- the end

bool Transfers::at_rest() {
  resting_ = true;
  for (size_t i = 0; i < machines_.size(); ++i) {
    const Machine& machine = machines_[i];
    if (!machine.live.empty() || machine.closing > 0 || world_.engine(i).loop().paused()) return false;
    for (const AreaPtr& area : machine.areas)
      if (!area->registered) return false;
  }
  return true;
}

void Transfers::check_recovered() {
  // Memory is not watched any more, and connections that were swallowed are noticed.
  world_.run_until(seconds(14), [] { return false; });
  for (size_t i = 0; i < world_.engines() && !world_.failed(); ++i) book_.check(world_.engine(i));
  if (!world_.failed()) check_reach();
  if (!world_.failed()) check_tables();
}

// I5: whatever restarted, everybody reaches everybody.
void Transfers::check_reach() {
  std::vector<LivePtr> all;
  for (size_t from = 0; from < world_.engines(); ++from)
    for (size_t to = 0; to < world_.engines(); ++to) {
      if (from == to) continue;
      LivePtr live = submit(world_.engine(from), world_.engine(to), Operation::read);
      if (!live) continue;  // no free slot
      live->must_work = true;
      all.push_back(std::move(live));
    }
  const auto done = [&] {
    for (const LivePtr& live : all)
      if (!live->task->completion->done()) return false;
    return true;
  };
  if (!world_.run_until(seconds(20), done) && !world_.failed())
    world_.fail("I5: 20 s after all faults engines do not reach each other");
}

// I6: what was opened for what has ended is gone.
void Transfers::check_tables() {
  world_.run_until(seconds(8), [] { return false; });
  if (world_.failed()) return;
  const size_t others = world_.engines() - 1;
  for (size_t i = 0; i < world_.engines(); ++i) {
    SimEngine& engine = world_.engine(i);
    if (engine.registry().quarantined() != 0) return world_.fail("I6: {} keeps closed regions", engine.name());
    if (static_cast<size_t>(engine.sessions()) > others)
      return world_.fail("I6: {} keeps {} sessions of {} peers", engine.name(), engine.sessions(), others);
    constexpr size_t kOfAPeer = 1 + 3;  // a session and its lanes
    const size_t streams = world_.wires().streams_of(engine.host());
    if (streams > 2 * others * kOfAPeer)
      return world_.fail("I6: {} keeps {} streams with {} peers", engine.name(), streams, others);
    if (const size_t lone = world_.wires().lone_streams_of(engine.host()); lone > 0)
      return world_.fail("I6: {} keeps {} streams that nobody is at the other end of", engine.name(), lone);
    if (engine.core().describe().find("\"transfers\":0") == std::string::npos)
      return world_.fail("I6: {} keeps transfers: {}", engine.name(), engine.core().describe());
  }
}

}  // namespace kvferry::simulator
