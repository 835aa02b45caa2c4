#include "engine/fabric/plugin/rails.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace kvferry::plugin {
namespace {

constexpr uint64_t kPairCost = 2048;  // bytes as which a shorter pair counts

uint64_t cost_of(const Job& part) {
  return std::max<uint64_t>(part.bytes, part.pairs.size() * kPairCost);
}

}  // namespace

// One job under way.
struct RailsPath::Haul {
  Haul(std::shared_ptr<Job> of, const RailOptions& options)
      : job(std::move(of)), rest(job->pairs, options.share_bytes, options.share_pairs) {}
  bool has_shares() const { return failure.ok() && (!again.empty() || !rest.done()); }

  const std::shared_ptr<Job> job;
  std::vector<uint32_t> distances;  // of its local memory, by rail
  Chunker rest;                     // what no rail has had
  std::deque<Share> again;          // what a rail gave back
  std::unordered_map<const Job*, Share> under_way;
  bool queued = false;
  bool ended = false;
  Status failure;
  const std::shared_ptr<Unsure> unsure = std::make_shared<Unsure>();
};

RailsPath::RailsPath(Loop& loop, std::vector<Way> ways, std::string owner, bool has_stand_in,
                     std::shared_ptr<Logger> logger, RailOptions options)
    : loop_(loop),
      owner_(std::move(owner)),
      has_stand_in_(has_stand_in),
      logger_(std::move(logger)),
      options_(options),
      numa_distances_(ways.front().node->topology().numa_distances()),
      watch_(loop) {
  for (Way& way : ways) {
    RailState& rail = rails_.emplace_back();
    rail.path = std::move(way.path);
    rail.node = way.node;
  }
}

RailsPath::~RailsPath() {
  close();
  *alive_ = false;
}

bool RailsPath::reaches(const RegionInfo& region) const {
  // A share goes by any of them. While all are out they are tried all the same, where nothing else stands in.
  if (has_stand_in_ && !any_usable()) return false;
  return std::all_of(rails_.begin(), rails_.end(),
                     [&](const RailState& rail) { return find_key(region, rail.node->fabric()) != nullptr; });
}

bool RailsPath::reaches_directly(MemoryOps& local, std::span<const RegionPin> pins, const RegionInfo& region) const {
  const auto known = [this](const RegionPin& pin) {
    return std::all_of(rails_.begin(), rails_.end(),
                       [&](const RailState& rail) { return pin.handle_of(*rail.node) != nullptr; });
  };
  return reaches(region) && (local.host_addressable() || std::all_of(pins.begin(), pins.end(), known));
}

// ---- giving shares to rails

void RailsPath::start(std::shared_ptr<Job> job) {
  auto haul = std::make_shared<Haul>(std::move(job), options_);
  const Place place = haul->job->pins.empty() ? Place() : haul->job->pins.front()->place;
  for (const RailState& rail : rails_)
    haul->distances.push_back(distance(place, rail.node->device().place, numa_distances_));
  hauls_.emplace(haul->job.get(), haul);
  queue(haul);
  pump();
}

void RailsPath::queue(const HaulPtr& haul) {
  if (!haul->ended && haul->has_shares() && !std::exchange(haul->queued, true)) queue_.push_back(haul);
}

// Hauls take turns share by share, so that a small one is not stuck behind a large one (I7). One whose rails are full
// keeps its place.
void RailsPath::pump() {
  if (closed_ || std::exchange(pumping_, true)) return;
  for (size_t idle = 0; idle < queue_.size();) {
    const HaulPtr haul = std::move(queue_.front());
    queue_.pop_front();
    haul->queued = false;
    const bool given = haul->has_shares() && give(haul);
    idle = given ? 0 : idle + 1;
    queue(haul);
  }
  pumping_ = false;
  if (!watch_.armed() && !hauls_.empty()) look_for_standstill();
}

std::vector<Rail> RailsPath::view_for(const Haul& haul) const {
  std::vector<Rail> view;
  for (size_t i = 0; i < rails_.size(); ++i) {
    const RailState& rail = rails_[i];
    view.push_back({rail.path->usable(), haul.distances[i], rail.node->device().gigabits, rail.waiting});
  }
  return view;
}

bool RailsPath::give(const HaulPtr& haul) {
  const auto rail = choose_rail(view_for(*haul), options_.share_bytes, options_.depth);
  if (!rail) return false;
  Share share;
  if (!haul->again.empty()) {
    share = std::move(haul->again.front());
    haul->again.pop_front();
  } else {
    share.chunk = haul->rest.take();
  }
  share.part = part_of(*haul->job, share.chunk);
  share.rail = *rail;
  put_on(haul, std::move(share));
  return true;
}

std::shared_ptr<Job> RailsPath::part_of(const Job& job, const Chunk& chunk) const {
  auto part = std::make_shared<Job>();
  part->operation = job.operation;
  part->local_ops = job.local_ops;
  part->table = job.table;
  part->deadline = job.deadline;
  part->bytes = chunk.bytes;
  for (const RegionPin& pin : job.pins) part->pins.push_back(pin.another());
  part->landing = job.landing;
  part->pairs.reserve(chunk.count);
  for_each_pair(job.pairs, chunk, [&](const Pair& pair) { part->pairs.push_back(pair); });
  const auto first = job.remote.begin() + static_cast<std::ptrdiff_t>(chunk.first);
  part->remote.assign(first, first + static_cast<std::ptrdiff_t>(chunk.count));
  return part;
}

void RailsPath::put_on(const HaulPtr& haul, Share share) {
  RailState& rail = rails_[share.rail];
  if (rail.waiting == 0) rail.since = loop_.now();
  rail.waiting += cost_of(*share.part);
  const std::shared_ptr<Job> part = share.part;
  part->done = [this, weak = std::weak_ptr(haul), raw = part.get(), alive = alive_](Status status) {
    const HaulPtr held = weak.lock();
    if (*alive && held) on_share(held, raw, std::move(status));
  };
  haul->under_way.emplace(part.get(), std::move(share));
  rail.path->start(part);
}

// ---- the end of a share, of a job

void RailsPath::on_share(const HaulPtr& haul, const Job* part, Status status) {
  auto entry = haul->under_way.extract(part);
  if (entry.empty()) return;
  Share share = std::move(entry.mapped());
  RailState& rail = rails_[share.rail];
  if (status.ok()) {
    rail.waiting -= cost_of(*share.part);
    rail.moved += share.chunk.bytes;
    haul->job->bytes_done += share.chunk.bytes;
    haul->job->spans_done += share.chunk.ended;
  } else {
    const ErrorCode code = status.error().code;
    const bool quiet = take_off(haul, share);  // now, while its path still knows it
    const bool may_move = quiet && !share.part->loose &&
                          (code == ErrorCode::unavailable || code == ErrorCode::peer_lost) &&
                          (any_usable() || !has_stand_in_) && ++share.moves < 2 * rails_.size();
    if (may_move && haul->failure.ok())
      haul->again.push_back(std::move(share));
    else if (haul->failure.ok())
      haul->failure = std::move(status).error();
  }
  queue(haul);
  // In a turn of its own: the path that speaks is in the middle of its work.
  tend_later();
  settle(haul);
}

// Takes a share from its rail. True: nothing of it is under way any more, here or there.
bool RailsPath::take_off(const HaulPtr& haul, const Share& share) {
  RailState& rail = rails_[share.rail];
  rail.waiting -= cost_of(*share.part);
  ++haul->unsure->count;
  const bool quiet = rail.path->cancel(share.part, [unsure = haul->unsure] {
    if (--unsure->count == 0 && unsure->told) std::exchange(unsure->told, {})();
  });
  if (quiet) --haul->unsure->count;
  haul->job->loose |= share.part->loose;
  return quiet;
}

void RailsPath::fail(const HaulPtr& haul, const Error& error) {
  if (haul->failure.ok()) haul->failure = error;
  bool loose = haul->unsure->count > 0;
  for (const auto& [part, share] : std::exchange(haul->under_way, {}))
    loose |= !take_off(haul, share) || share.part->loose;
  // "unavailable" would let another fabric begin anew beside what may still be under way.
  const Error& why = haul->failure.error();
  finish(haul, loose && why.code == ErrorCode::unavailable ? Error{ErrorCode::peer_lost, why.message, why.cause} : why);
}

void RailsPath::settle(const HaulPtr& haul) {
  if (haul->ended || haul->has_shares()) return;
  if (haul->failure.ok() && haul->under_way.empty()) finish(haul, {});
}

// The haul stays known while `done` runs: whoever is told asks cancel() whether the far side is quiet.
void RailsPath::finish(const HaulPtr& haul, Status status) {
  if (std::exchange(haul->ended, true)) return;
  const auto done = std::move(haul->job->done);
  done(std::move(status));
  hauls_.erase(haul->job.get());
}

bool RailsPath::cancel(const std::shared_ptr<Job>& job, Task far_quiet) {
  const auto entry = hauls_.extract(job.get());
  if (entry.empty()) return true;
  const HaulPtr haul = entry.mapped();
  haul->ended = true;
  std::erase(queue_, haul);
  for (const auto& [part, share] : std::exchange(haul->under_way, {})) take_off(haul, share);
  tend_later();  // rails have room
  if (haul->unsure->count == 0) return true;
  haul->unsure->told = std::move(far_quiet);
  return false;
}

void RailsPath::retire(const std::shared_ptr<const RegionTable>& table, Task quiet) {
  const auto is_gone = [&](const RegionInfo* region) { return table->find(region->id) == nullptr; };
  for (const HaulPtr& haul : all_hauls()) {
    const auto& remote = haul->job->remote;
    const auto gone = std::find_if(remote.begin(), remote.end(), is_gone);
    if (gone != remote.end())
      fail(haul, Error{ErrorCode::not_found, fmt::format("region {} was unregistered", (*gone)->id)});
  }
  const auto left = std::make_shared<size_t>(rails_.size());
  for (RailState& rail : rails_)
    rail.path->retire(table, [left, quiet] {
      if (--*left == 0) quiet();
    });
}

bool RailsPath::close() {
  closed_ = true;
  queue_.clear();
  watch_.cancel();
  bool quiet = true;
  for (RailState& rail : rails_) quiet &= rail.path->close();
  return quiet;
}

// ---- rails that fail

bool RailsPath::any_usable() const {
  return std::any_of(rails_.begin(), rails_.end(), [](const RailState& rail) { return rail.path->usable(); });
}

std::vector<RailsPath::HaulPtr> RailsPath::all_hauls() const {
  std::vector<HaulPtr> all;
  for (const auto& [job, haul] : hauls_)
    if (!haul->ended) all.push_back(haul);
  return all;
}

void RailsPath::tend_later() {
  if (closed_ || std::exchange(tending_planned_, true)) return;
  loop_.defer([this, alive = alive_] {
    if (!*alive) return;
    tending_planned_ = false;
    tend();
  });
}

void RailsPath::tend() {
  if (closed_) return;
  for (size_t i = 0; i < rails_.size(); ++i) {
    RailState& rail = rails_[i];
    const bool out = !rail.path->usable();
    if (out != rail.out) {
      rail.out = out;
      if (out)
        logger_->warning("rail {} ({}) to {} is out: {}", rail.node->fabric(), rail.node->device().name, owner_,
                         rail.path->describe());
      else
        logger_->info("rail {} ({}) to {} is back", rail.node->fabric(), rail.node->device().name, owner_);
    }
    if (out && rail.waiting > 0 && any_usable()) evacuate(i);
  }
  for (const HaulPtr& haul : all_hauls())
    if (!haul->failure.ok()) fail(haul, haul->failure.error());
  pump();
}

// Shares that wait on a rail for its next connection go to the others.
void RailsPath::evacuate(size_t rail) {
  for (const HaulPtr& haul : all_hauls()) {
    std::vector<const Job*> here;
    for (const auto& [part, share] : haul->under_way)
      if (share.rail == rail) here.push_back(part);
    for (const Job* part : here) {
      auto entry = haul->under_way.extract(part);
      if (entry.empty()) continue;
      Share share = std::move(entry.mapped());
      if (take_off(haul, share) && !share.part->loose)
        haul->again.push_back(std::move(share));
      else if (haul->failure.ok())
        haul->failure = Error{ErrorCode::peer_lost, "the rail that carried part of it is out"};
    }
    queue(haul);
  }
}

// One that moves nothing although it has work, while others move or have none, is taken for dead: a network that
// swallows what is sent says nothing.
void RailsPath::look_for_standstill() {
  const TimePoint now = loop_.now();
  const bool we_stood_still = now - std::exchange(last_look_, now) > options_.patience / 2;
  std::vector<uint64_t> marks;
  for (const RailState& rail : rails_) marks.push_back(rail.moved);
  for (const auto& [job, haul] : hauls_)
    for (const auto& [part, share] : haul->under_way) marks[share.rail] += part->bytes_done.load();
  std::vector<size_t> still;
  bool others_move = false;
  for (size_t i = 0; i < rails_.size(); ++i) {
    RailState& rail = rails_[i];
    if (std::exchange(rail.mark, marks[i]) != marks[i] || rail.waiting == 0 || we_stood_still) rail.since = now;
    if (now - rail.since >= options_.patience)
      still.push_back(i);
    else
      others_move |= rail.path->usable();
  }
  if (others_move)
    for (const size_t i : still)
      rails_[i].path->give_up(fmt::format("nothing moved for {:.1f} s", seconds(now - rails_[i].since)));
  tend_later();
  const bool any_out = std::any_of(rails_.begin(), rails_.end(), [](const RailState& rail) { return rail.out; });
  if (!closed_ && (!hauls_.empty() || any_out))
    watch_.arm(now + options_.patience / 4, [this] { look_for_standstill(); });
}

std::string RailsPath::describe() const {
  std::string out = fmt::format("{} rails, topology: {}", rails_.size(), rails_.front().node->topology().source());
  for (const RailState& rail : rails_)
    out += fmt::format("; {} ({}): {}, {} bytes moved, {}", rail.node->fabric(), rail.node->device().name,
                       rail.path->usable() ? "in use" : "out", rail.moved, rail.path->describe());
  return out;
}

}  // namespace kvferry::plugin
