#include "engine/parcel/owner.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>

#include "engine/parcel/stream.h"

// Publishing, releasing, expiring: a parcel from its first word to its last. Claims are in owner_claims.cc.

namespace kvferry {
namespace {

// Generations of parcels, apart from region ids (small) and sessions (bit 63), and unguessable.
uint64_t fresh_generation(Random& random) {
  return (random.next() >> 2) | (uint64_t{1} << 62);
}

constexpr Duration kTablesPerTurn = std::chrono::milliseconds(1);

// Whether every block of the cache lies in its region.
Status check_fits(const KvLayout& layout, const std::map<RegionId, RegionInfo>& regions) {
  for (const KvLayer& layer : layout.layers) {
    const KvGroup& group = layout.groups[layer.group];
    for (const KvPlane* plane : {&layer.k, &layer.v}) {
      const uint32_t row = plane == &layer.k ? group.k_row_bytes() : group.v_row_bytes();
      if (row == 0) continue;
      const auto region = regions.find(plane->region);
      if (region == regions.end())
        return Error{ErrorCode::not_found,
                     fmt::format("the cache lies in region {}, which is not registered", plane->region)};
      const uint64_t last = plane->row(uint64_t{group.block_count} - 1, uint64_t{group.heads_local} - 1,
                                       uint64_t{group.block_tokens} - 1);
      if (!check_span(region->second, last, row).ok())
        return Error{ErrorCode::invalid_argument,
                     fmt::format("layer {} reaches beyond region {}", layer.index, plane->region)};
    }
  }
  return {};
}

Status check_id(const std::string& transfer_id) {
  if (!transfer_id.empty() && transfer_id.size() <= kMaxParcelName) return {};
  return Error{ErrorCode::invalid_argument, fmt::format("a transfer id has 1 to {} bytes", kMaxParcelName)};
}

// I6: the ticket must fit a session's frame of 1 MiB; a block id takes 5 bytes at most, a region 60, the rest 200.
Status check_ticket(size_t layout_bytes, size_t regions, const std::vector<BlockList>& blocks) {
  size_t ids = 0;
  for (const BlockList& list : blocks) ids += list.ids.size();
  if (layout_bytes + regions * 260 + ids * 5 + blocks.size() * 16 + 200 <= Frames::Limits{}.frame_bytes) return {};
  return Error{ErrorCode::invalid_argument, fmt::format("a ticket with {} block ids does not fit a frame", ids)};
}

}  // namespace

Status check_names(std::string_view transfer_id, std::string_view owner_instance, std::string_view reader_instance,
                   std::string_view fingerprint) {
  if (std::max({transfer_id.size(), owner_instance.size(), reader_instance.size()}) <= kMaxParcelName &&
      fingerprint.size() <= kMaxFingerprint)
    return {};
  return Error{ErrorCode::invalid_argument, fmt::format("a claim's names have at most {} bytes, its fingerprint {}",
                                                        kMaxParcelName, kMaxFingerprint)};
}

std::string_view to_string(ReleaseReason reason) {
  switch (reason) {
    case ReleaseReason::settled:
      return "settled";
    case ReleaseReason::released:
      return "released";
    case ReleaseReason::expired:
      return "expired";
    case ReleaseReason::reader_failed:
      return "reader_failed";
    case ReleaseReason::aborted:
      return "aborted";
    case ReleaseReason::shut_down:
      return "shut_down";
  }
  return "unknown";
}

// Told once until it is taken: who hears of it takes all there is.
void ParcelEvents::push(ParcelReleased released) {
  bool first = false;
  {
    const std::lock_guard lock(mutex_);
    first = queue_.empty();
    queue_.push_back(std::move(released));
    untaken_.store(queue_.size(), std::memory_order_relaxed);
  }
  if (first) hub_.tell(kParcelReleased);
}

std::vector<ParcelReleased> ParcelEvents::take() {
  const std::lock_guard lock(mutex_);
  std::vector<ParcelReleased> taken(std::make_move_iterator(queue_.begin()), std::make_move_iterator(queue_.end()));
  queue_.clear();
  untaken_.store(0, std::memory_order_relaxed);
  return taken;
}

ParcelOwner::ParcelOwner(Parts parts, ParcelLimits limits)
    : parts_(parts),
      limits_(limits),
      expiry_timer_(parts_.loop),
      tables_(parts_.loop, kTablesPerTurn),
      parcels_gauge_(parts_.metrics.gauge("kvferry_parcels", "Parcels that are announced or hold blocks")),
      claims_gauge_(parts_.metrics.gauge("kvferry_parcel_claims", "Claims that wait or read")) {
  parts_.lanes.set_desk(this);
  // There from the start, so that an alert has something to look at.
  for (const char* limit : {"parcels", "claims_per_parcel", "waiting_per_reader", "waiting_claims", "fetches_per_claim",
                            "spans_per_claim", "kept_verdicts", "tombstones"})
    refusals(limit);
}

ParcelOwner::~ParcelOwner() {
  *alive_ = false;
  shut_down();
  parts_.lanes.set_desk(nullptr);
}

Status ParcelOwner::set_cache(std::string instance_id, KvLayout layout) {
  if (!layout_bytes_.empty()) return Error{ErrorCode::already_exists, "the cache is described already"};
  KVF_RETURN_IF_ERROR(validate(layout));
  std::map<RegionId, RegionInfo> regions;
  for (const RegionInfo& region : parts_.registry.snapshot()) regions.emplace(region.id, region);
  KVF_RETURN_IF_ERROR(check_fits(layout, regions));
  std::set<RegionId> used;
  for (const KvLayer& layer : layout.layers) {
    used.insert(layer.k.region);
    if (layout.groups[layer.group].head_size_v > 0) used.insert(layer.v.region);
  }
  for (const RegionId id : used) {
    cache_regions_.push_back(regions.at(id));
    KVF_ASSIGN_OR_RETURN(const RegionPin pin, parts_.registry.pin_remote(id, kPrivate));
    if (cache_ops_ != nullptr && cache_ops_ != pin->ops)
      return Error{ErrorCode::unsupported, "the cache lies in several memory kinds"};
    cache_ops_ = pin->ops;
  }
  instance_id_ = std::move(instance_id);
  layout_ = std::move(layout);
  layout_bytes_ = encode(layout_);
  layout_hash_ = XXH3_64bits(layout_bytes_.data(), layout_bytes_.size());
  return {};
}

// ---- from announce to publish

Status ParcelOwner::announce(const std::string& transfer_id, Duration lease) {
  KVF_RETURN_IF_ERROR(check_id(transfer_id));
  if (buried(transfer_id)) return Error{ErrorCode::gone, "transfer \"" + transfer_id + "\" was released before"};
  if (parcels_.contains(transfer_id))
    return Error{ErrorCode::already_exists, "transfer \"" + transfer_id + "\" is known already"};
  if (parcels_.size() + parts_.events.untaken() >= limits_.parcels) return full("parcels", limits_.parcels);
  auto parcel = std::make_unique<Parcel>();
  parcel->id = transfer_id;
  parcel->state = transition(ParcelState::none, ParcelEvent::announce);
  parcel->born = parts_.loop.now();
  parcel->lease = lease;
  parcel->serial = next_serial_++;
  set_expiry(*parcel, after(parcel->born, lease));
  parcels_.emplace(transfer_id, std::move(parcel));
  schedule_expiry();
  return {};
}

void ParcelOwner::withdraw(const std::string& transfer_id) {
  const auto found = parcels_.find(transfer_id);
  if (found != parcels_.end() && found->second->state == ParcelState::announced)
    end(*found->second, ParcelEvent::withdraw, ReleaseReason::released);
}

Status ParcelOwner::publish(ParcelSpec spec) {
  KVF_RETURN_IF_ERROR(check_id(spec.transfer_id));
  if (layout_bytes_.empty()) return Error{ErrorCode::invalid_argument, "publish before the cache is described"};
  if (spec.blocks.size() != layout_.groups.size())
    return Error{ErrorCode::invalid_argument, fmt::format("blocks of {} KV groups, but the cache has {}",
                                                          spec.blocks.size(), layout_.groups.size())};
  KVF_RETURN_IF_ERROR(check_ticket(layout_bytes_.size(), cache_regions_.size(), spec.blocks));
  KVF_RETURN_IF_ERROR(check_names(spec.transfer_id, {}, {}, spec.fingerprint));
  if (buried(spec.transfer_id)) {
    // Released before it came: the blocks go straight back, by the event that the caller waits for anyway.
    parts_.events.push({std::move(spec.transfer_id), ReleaseReason::aborted});
    return {};
  }
  if (const auto found = parcels_.find(spec.transfer_id);
      found != parcels_.end() && found->second->state != ParcelState::announced)
    return Error{ErrorCode::already_exists, "transfer \"" + spec.transfer_id + "\" is published already"};
  bool filled = true;
  if (spec.event != 0) {
    KVF_ASSIGN_OR_RETURN(filled, cache_ops_->event_done(spec.event));
  }
  if (!parcels_.contains(spec.transfer_id)) KVF_RETURN_IF_ERROR(announce(spec.transfer_id, spec.lease));

  Parcel& parcel = *parcels_.at(spec.transfer_id);
  const uint64_t generation = fresh_generation(parts_.random);
  KVF_ASSIGN_OR_RETURN(parcel.word, parts_.words.open(generation));
  parcel.generation = generation;
  parcel.state = transition(parcel.state, ParcelEvent::publish);
  parcel.blocks = std::move(spec.blocks);
  parcel.tokens = spec.tokens;
  parcel.fingerprint = std::move(spec.fingerprint);
  parcel.digest = spec.digest;
  parcel.lease = spec.lease;
  parcel.born = parts_.loop.now();
  set_expiry(parcel, after(parcel.born, spec.lease));
  schedule_expiry();
  parcel.filled = filled;
  if (filled) {
    grant_waiting(parcel);
  } else {
    parcel.filling = parts_.lanes.staging().when(
        *cache_ops_, spec.event, [this, alive = alive_, id = parcel.id, generation](const Status& status) {
          if (*alive) on_filled(id, generation, status);
        });
  }
  update_gauges();
  return {};
}

// A claim that is refused may end the parcel.
void ParcelOwner::grant_waiting(Parcel& parcel) {
  const std::string id = parcel.id;
  for (const ClaimPtr& claim : take_waiting(id)) {
    const auto found = parcels_.find(id);
    if (found != parcels_.end()) {
      grant(*found->second, claim);
      continue;
    }
    claim->state = transition(claim->state, ClaimEvent::fail);
    claims_.erase(claim->key);
    std::exchange(claim->granted, nullptr)(Error{ErrorCode::gone, "the parcel has ended"});
  }
}

void ParcelOwner::on_filled(const std::string& transfer_id, uint64_t generation, const Status& status) {
  const auto found = parcels_.find(transfer_id);
  if (found == parcels_.end() || found->second->generation != generation) return;
  Parcel& parcel = *found->second;
  parcel.filled = true;
  if (!status.ok()) return end(parcel, ParcelEvent::release, ReleaseReason::aborted);
  grant_waiting(parcel);
  update_gauges();
}

// ---- the end of a parcel

ReleaseAnswer ParcelOwner::release(const std::string& transfer_id, bool force) {
  const auto found = parcels_.find(transfer_id);
  if (found == parcels_.end()) {
    if (buried(transfer_id)) return ReleaseAnswer::done;
    if (check_id(transfer_id).ok()) bury(transfer_id, std::chrono::seconds(480));
    refuse_waiting(transfer_id, Error{ErrorCode::gone, "released before it was published"});
    return ReleaseAnswer::unknown;
  }
  Parcel& parcel = *found->second;
  if (!force && !parcel.live.empty()) {
    parcel.release_wanted = true;
    return ReleaseAnswer::waits_for_readers;
  }
  end(parcel, ParcelEvent::release, ReleaseReason::released);
  return ReleaseAnswer::done;
}

// I2, DESIGN.md: the generation moves, then this engine's own copies stop, then the blocks go back.
void ParcelOwner::end(Parcel& parcel, ParcelEvent event, ReleaseReason why) {
  const bool held_blocks = parcel.word != kNoWord;
  parcel.state = transition(parcel.state, event);
  KVF_CHECK(is_final(parcel.state));
  if (held_blocks) parts_.words.close(parcel.word);
  const std::set<ParcelStream*> streams = std::exchange(parcel.streams, {});
  for (ParcelStream* stream : streams) stream->stop();
  const Error stale{ErrorCode::stale, fmt::format("the parcel was {} while it was read", to_string(parcel.state))};
  for (const ClaimPtr& claim : std::exchange(parcel.live, {})) {
    claim->state = transition(claim->state, ClaimEvent::fail);
    claim->parcel = nullptr;
    keep_verdict(claim->key, stale);
    claims_.erase(claim->key);
    stop_checking(claim);
  }
  refuse_waiting(parcel.id, Error{ErrorCode::gone, fmt::format("the parcel was {}", to_string(parcel.state))});
  expiry_.erase({parcel.expires, parcel.serial});
  bury(parcel.id, parcel.lease);
  if (held_blocks) {
    parts_.words.free(parcel.word);
    parts_.events.push({parcel.id, why});
  }
  parcels_.erase(std::string(parcel.id));
  update_gauges();
}

void ParcelOwner::bury(const std::string& transfer_id, Duration lease) {
  const TimePoint until = after(parts_.loop.now(), lease);
  if (!tombstones_.insert_or_assign(transfer_id, until).second) return;
  tombstone_order_.emplace_back(until, transfer_id);
  for (; tombstone_order_.size() > limits_.tombstones; tombstone_order_.pop_front()) {
    if (tombstone_order_.front().first > parts_.loop.now()) refused("tombstones");
    tombstones_.erase(tombstone_order_.front().second);
  }
}

bool ParcelOwner::buried(const std::string& transfer_id) {
  const TimePoint now = parts_.loop.now();
  while (!tombstone_order_.empty() && tombstone_order_.front().first <= now) {
    tombstones_.erase(tombstone_order_.front().second);
    tombstone_order_.pop_front();
  }
  const auto found = tombstones_.find(transfer_id);
  return found != tombstones_.end() && found->second > now;
}

void ParcelOwner::set_expiry(Parcel& parcel, TimePoint expires) {
  expiry_.erase({parcel.expires, parcel.serial});
  parcel.expires = expires;
  expiry_.emplace(std::pair{expires, parcel.serial}, &parcel);
}

// A timer that is early only looks again: parcels that were released need not move it.
void ParcelOwner::schedule_expiry() {
  if (expiry_.empty()) return expiry_timer_.cancel();
  const TimePoint first = expiry_.begin()->first.first;
  if (expiry_timer_.armed() && expiry_due_ <= first) return;
  expiry_due_ = first;
  expiry_timer_.arm(first, [this] { expire_due(); });
}

void ParcelOwner::expire_due() {
  const TimePoint now = parts_.loop.now();
  while (!expiry_.empty() && expiry_.begin()->first.first <= now)
    end(*expiry_.begin()->second, ParcelEvent::expire, ReleaseReason::expired);
  schedule_expiry();
}

std::optional<ParcelStatus> ParcelOwner::status(const std::string& transfer_id) const {
  const auto found = parcels_.find(transfer_id);
  if (found == parcels_.end()) return std::nullopt;
  const Parcel& parcel = *found->second;
  return ParcelStatus{to_string(parcel.state), parts_.loop.now() - parcel.born, parcel.live.size()};
}

void ParcelOwner::end_all() {
  std::vector<Parcel*> all;
  for (const auto& [id, parcel] : parcels_) all.push_back(parcel.get());
  for (Parcel* parcel : all) end(*parcel, ParcelEvent::release, ReleaseReason::shut_down);
}

void ParcelOwner::end_users_of(const RegionState& region) {
  const bool of_cache =
      std::any_of(layout_.layers.begin(), layout_.layers.end(),
                  [id = region.info.id](const KvLayer& layer) { return layer.k.region == id || layer.v.region == id; });
  if (of_cache) end_all();
}

void ParcelOwner::shut_down() {
  end_all();
  std::vector<std::string> waited_for;
  for (const auto& [id, claims] : waiting_) waited_for.push_back(id);
  for (const std::string& id : waited_for) refuse_waiting(id, Error{ErrorCode::gone, "the owner is shutting down"});
  expiry_timer_.cancel();
  readers_.clear();
}

Error ParcelOwner::full(const char* limit, size_t value) const {
  refused(limit);
  return Error{ErrorCode::resource_exhausted, fmt::format("{} ({}) are all in use", limit, value)};
}

Counter& ParcelOwner::refusals(const char* limit) const {
  return parts_.metrics.counter("kvferry_parcel_refusals_total",
                                "Parcels and claims refused, or records dropped, by a limit", {{"limit", limit}});
}

void ParcelOwner::refused(const char* limit) const {
  refusals(limit).add();
}

void ParcelOwner::update_gauges() {
  parcels_gauge_.set(static_cast<int64_t>(parcels_.size()));
  claims_gauge_.set(static_cast<int64_t>(claims_.size()));
}

}  // namespace kvferry
