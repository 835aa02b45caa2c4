#include "test/simulator/transfers.h"

#include <algorithm>

#include "engine/plan/coalesce.h"

namespace kvferry::simulator {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Area::Role kRoles[] = {Area::Role::source, Area::Role::source, Area::Role::target, Area::Role::target,
                                 Area::Role::local};

uint32_t permissions_of(Area::Role role) {
  switch (role) {
    case Area::Role::source:
      return kRemoteRead;
    case Area::Role::target:
      return kRemoteWrite;
    case Area::Role::local:
      return kPrivate;
  }
  return kPrivate;
}

}  // namespace

Transfers::Transfers(World& world, Options options)
    : world_(world), options_(options), book_(world), machines_(world.engines()) {}

Transfers::~Transfers() = default;

// ---- engines come and go

void Transfers::started(SimEngine& engine) {
  Machine& machine = machines_[engine.host()];
  machine.areas.clear();
  machine.closing = 0;
  std::byte* at = engine.memory();
  for (const Area::Role role : kRoles) {
    auto area = std::make_shared<Area>();
    area->role = role;
    area->base = at;
    area->slot_bytes = options_.slot_bytes;
    area->busy.assign(options_.slots, false);
    std::memset(at, 0, area->bytes());
    at += area->bytes();
    register_area(engine, *area);
    machine.areas.push_back(std::move(area));
  }
  engine.core().announce_regions();
}

// Its own transfers end with it, and so does what is known of its memory.
void Transfers::ending(SimEngine& engine) {
  Machine& machine = machines_[engine.host()];
  for (const AreaPtr& area : machine.areas) {
    ++area->epoch;
    area->registered = false;
  }
  machine.live.clear();
  book_.forget_all(engine);
}

void Transfers::register_area(SimEngine& engine, Area& area) {
  area.tag = next_tag_++;
  if (area.role == Area::Role::source) fill_pattern(area.base, area.bytes(), area.tag, 0);
  auto info = engine.registry().add(area.base, area.bytes(), MemoryKind::host, permissions_of(area.role));
  if (!info) return world_.fail("{} cannot register memory that is quiet: {}", engine.name(), info.error().to_string());
  area.region = *info;
  area.registered = true;
  ++area.epoch;
  area.busy.assign(area.busy.size(), false);
}

void Transfers::register_again(SimEngine& engine, const AreaPtr& area, uint64_t life) {
  if (engine.life() != life || !engine.running() || area->registered) return;
  if (!engine.may_call()) {  // a stopped process calls nothing
    world_.timeline().in(milliseconds(10), [this, &engine, area, life] { register_again(engine, area, life); });
    return;
  }
  book_.check(engine);
  book_.forget(engine, area->base, area->bytes());
  register_area(engine, *area);
  if (!world_.failed()) engine.core().announce_regions();
  world_.history().say("{} registers region {}", engine.name(), area->region.id);
}

SimEngine* Transfers::draw_engine() {
  SimEngine& engine = world_.engine(world_.random().below(world_.engines()));
  return engine.may_call() ? &engine : nullptr;
}

Transfers::AreaPtr Transfers::draw_area(SimEngine& engine, Area::Role role) {
  std::vector<AreaPtr> fitting;
  for (const AreaPtr& area : machines_[engine.host()].areas)
    if (area->role == role && area->registered) fitting.push_back(area);
  return fitting.empty() ? nullptr : fitting[world_.random().below(fitting.size())];
}

// ---- actions

void Transfers::act() {
  const uint64_t what = world_.random().below(100);
  if (what < 80) {
    SimEngine* initiator = draw_engine();
    SimEngine& owner = world_.engine(world_.random().below(world_.engines()));
    if (initiator == nullptr || initiator == &owner) return;
    submit(*initiator, owner, what < 40 ? Operation::read : Operation::write);
  } else if (what < 92) {
    cancel_one();
  } else {
    unregister_one();
  }
}

bool Transfers::draw_pieces(Live& live) {
  const Area::Role wanted = live.operation == Operation::read ? Area::Role::source : Area::Role::target;
  const size_t count = 1 + world_.random().below(options_.most_pairs);
  for (size_t i = 0; i < count; ++i) {
    const AreaPtr remote = draw_area(*live.owner, wanted);
    if (!remote) return false;
    Piece piece;
    piece.remote = remote;
    piece.local_slot = world_.random().below(options_.slots);
    piece.remote_slot = world_.random().below(options_.slots);
    piece.length = 1 + world_.random().below(options_.slot_bytes);
    piece.offset = world_.random().below(options_.slot_bytes - piece.length + 1);
    if (live.local->busy[piece.local_slot]) continue;
    if (live.operation == Operation::write && remote->busy[piece.remote_slot]) continue;
    live.local->busy[piece.local_slot] = true;
    if (live.operation == Operation::write) {
      remote->busy[piece.remote_slot] = true;
      const std::byte* target = remote->slot(piece.remote_slot) + piece.offset;
      piece.before.assign(target, target + piece.length);
    }
    live.epochs.push_back(remote->epoch);
    live.tags.push_back(remote->tag);
    live.pieces.push_back(std::move(piece));
  }
  return !live.pieces.empty();
}

// What Engine::submit() does in the caller's thread.
std::shared_ptr<Job> Transfers::make_job(Live& live) {
  auto job = std::make_shared<Job>();
  job->operation = live.operation;
  std::vector<Pair> pairs;
  for (const Piece& piece : live.pieces) {
    std::byte* local = live.local->slot(piece.local_slot);
    if (live.operation == Operation::write) fill_pattern(local, piece.length, kFromSerial + live.serial, 0);
    const uint64_t offset = piece.remote_slot * piece.remote->slot_bytes + piece.offset;
    pairs.push_back({local, piece.remote->region.id, offset, piece.length});
    job->bytes += piece.length;
  }
  job->pairs = coalesce(pairs);
  auto pin = live.initiator->registry().pin_local(live.local->base, live.local->bytes());
  if (!pin) {
    world_.fail("{} does not know its own region {}: {}", live.initiator->name(), live.local->region.id,
                pin.error().to_string());
    return nullptr;
  }
  job->local_ops = (*pin)->ops;
  job->pins.push_back(std::move(*pin));
  return job;
}

Duration Transfers::draw_timeout() {
  if (resting_) return seconds(15);
  return world_.chance(20) ? world_.draw(milliseconds(0), milliseconds(20)) : world_.draw(milliseconds(20), seconds(8));
}

Transfers::LivePtr Transfers::submit(SimEngine& initiator, SimEngine& owner, Operation operation) {
  auto live = std::make_shared<Live>();
  live->serial = next_serial_++;
  live->operation = operation;
  live->initiator = &initiator;
  live->owner = &owner;
  live->initiator_life = initiator.life();
  live->owner_life = owner.life();
  live->local = draw_area(initiator, Area::Role::local);
  if (!live->local || !draw_pieces(*live)) {
    for (const Piece& piece : live->pieces) {
      live->local->busy[piece.local_slot] = false;
      if (operation == Operation::write) piece.remote->busy[piece.remote_slot] = false;
    }
    return nullptr;
  }
  live->local_epoch = live->local->epoch;
  auto peer = initiator.core().find_or_add_peer(owner.address());
  KVF_CHECK(peer.ok());
  live->peer = *peer;
  live->task = std::make_shared<TransferTask>();
  live->task->id = live->serial;
  live->task->job = make_job(*live);
  if (!live->task->job) return nullptr;
  live->submitted = world_.now();
  live->task->submitted = initiator.loop().now();
  live->task->deadline = live->task->submitted + draw_timeout();
  live->task->job->deadline = live->task->deadline;
  if (resting_ || world_.chance(30)) {
    live->notifies = true;
    live->task->notification = Notification{std::to_string(live->serial), "x"};
    notifying_.emplace(live->serial, live);
  }
  machines_[initiator.host()].live.emplace(live->serial, live);
  world_.history().mark(200, live->serial);
  world_.history().say("{}", describe(*live));
  initiator.core().submit(live->peer, live->task);
  return live;
}

void Transfers::cancel_one() {
  SimEngine* engine = draw_engine();
  if (engine == nullptr) return;
  auto& all = machines_[engine->host()].live;
  if (all.empty()) return;
  auto at = all.begin();
  std::advance(at, static_cast<ptrdiff_t>(world_.random().below(all.size())));
  const LivePtr live = at->second;
  world_.history().say("{} cancels #{}", engine->name(), live->serial);
  engine->core().cancel(live->peer, live->task, Error{ErrorCode::cancelled, "cancelled by the caller"});
  if (!live->task->completion->done() && live->task->phase != TransferPhase::fencing)
    return world_.fail("I4: cancel of #{} returned and the transfer goes on", live->serial);
  if (live->operation == Operation::read && !live->task->completion->done())
    return world_.fail("a cancelled read, #{}, waits for its far side", live->serial);
  if (!live->task->completion->done() || !live->task->completion->outcome().status.ok()) give_back_local(*live);
}

void Transfers::unregister_one() {
  SimEngine* engine = draw_engine();
  if (engine == nullptr) return;
  const AreaPtr area = machines_[engine->host()].areas[world_.random().below(std::size(kRoles))];
  if (!area->registered) return;
  area->registered = false;
  ++area->epoch;
  ++machines_[engine->host()].closing;
  world_.history().say("{} unregisters region {}", engine->name(), area->region.id);
  const Duration patience = seconds(1);
  const uint64_t life = engine->life();
  book_.forget(*engine, area->base, area->bytes());
  const auto quiet = [this, engine, area, life](const Status& status) {
    if (!status.ok())
      return world_.fail("I4: region {} of {} does not become quiet: {}", area->region.id, engine->name(),
                         status.error().to_string());
    --machines_[engine->host()].closing;
    fill_poison(area->base, area->bytes());
    book_.watch(*engine, area->base, area->bytes(), kNever, fmt::format("region {}, unregistered", area->region.id),
                {});
    world_.timeline().in(world_.draw(milliseconds(0), seconds(2)),
                         [this, engine, area, life] { register_again(*engine, area, life); });
  };
  engine->core().unregister(area->region.id, engine->loop().now() + patience, quiet,
                            [this, engine] { world_.fail("{} had a region in quarantine", engine->name()); });
}

}  // namespace kvferry::simulator
