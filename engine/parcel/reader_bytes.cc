#include <fmt/format.h>

#include <algorithm>

#include "engine/parcel/digested_read.h"
#include "engine/parcel/mapped_read.h"
#include "engine/parcel/reader.h"
#include "engine/parcel/staged_read.h"
#include "proto/parse.h"

// How the bytes of a share come: copied from the owner's memory behind its gate, or as one stream.

namespace kvferry {

Status ParcelReader::pin_cache(Read& read) {
  const KvLayout& layout = *read.request.layout;
  for (const KvLayer& layer : layout.layers) {
    for (const KvPlane* plane : {&layer.k, &layer.v}) {
      if (plane == &layer.v && layout.groups[layer.group].head_size_v == 0) continue;
      const auto known = std::any_of(read.pins.begin(), read.pins.end(),
                                     [&](const RegionPin& pin) { return pin->info.id == plane->region; });
      if (known) continue;
      KVF_ASSIGN_OR_RETURN(RegionPin pin, registry_.pin_remote(plane->region, kPrivate));
      if (read.ops != nullptr && read.ops != pin->ops)
        return Error{ErrorCode::unsupported, "the cache lies in several memory kinds"};
      read.ops = pin->ops;
      read.pins.push_back(std::move(pin));
    }
  }
  return {};
}

Result<CacheWalk> ParcelReader::target_of(const Read& read, const Selection& selection) {
  KVF_ASSIGN_OR_RETURN(CacheSpans spans,
                       reader_spans(selection, CacheSide{read.request.layout.get(), read.request.blocks}));
  std::vector<const RegionState*> regions;
  for (const RegionPin& pin : read.pins) regions.push_back(pin.get());
  return CacheWalk(std::move(spans), std::move(regions));
}

Result<std::vector<Pair>> ParcelReader::local_pairs(const Read& read, const CachePairs& pairs) const {
  std::vector<Pair> out;
  Status status;
  pairs.for_each([&](const CachePairs::Span& span) {
    for (const RegionPin& pin : read.pins) {
      if (pin->info.id != span.region[kReaderSide]) continue;
      if (status.ok()) status = check_span(pin->info, span.offset[kReaderSide], span.length);
      out.push_back({pin->at(span.offset[kReaderSide]), span.region[kOwnerSide], span.offset[kOwnerSide], span.length});
      return;
    }
    status = Error{ErrorCode::not_found, "a region of this cache is not registered"};
  });
  if (!status.ok()) return std::move(status).error();
  return out;
}

void ParcelReader::read_share(const ReadPtr& read, size_t index) {
  Share& share = read->shares[index];
  if (share.plan.selection.parts.empty()) return on_share_read(read, index, {}, std::nullopt);
  Peer& peer = core_.peer(share.peer);
  // Planned before the ticket, which names the owner's blocks: only the owner can find them.
  const bool knows_blocks = !share.plan.pairs.empty();
  if (knows_blocks && reaches(*read, share)) return read_one_sided(read, index, *peer.one_sided_path());
  if (peer.fetch_path() != nullptr) return read_stream(read, index, target_of(*read, share.plan.selection));
  give_up(read, ReadState::failed, Error{ErrorCode::unsupported, "no fabric reaches the owner's memory"}, index);
}

// Whether a one-sided fabric does, through staging memory if need be.
bool ParcelReader::reaches(const Read& read, const Share& share) const {
  const OneSidedPath* path = core_.peer(share.peer).one_sided_path();
  if (path == nullptr) return false;
  const auto& regions = share.owner.regions->regions();
  return reaches_directly(read, share) ||
         std::all_of(regions.begin(), regions.end(), [path](const RegionInfo& one) { return path->reaches(one); });
}

bool ParcelReader::reaches_directly(const Read& read, const Share& share) const {
  const OneSidedPath* path = core_.peer(share.peer).one_sided_path();
  if (path == nullptr) return false;
  const auto& regions = share.owner.regions->regions();
  return std::all_of(regions.begin(), regions.end(),
                     [&](const RegionInfo& one) { return path->reaches_directly(*read.ops, read.pins, one); });
}

Result<std::shared_ptr<Job>> ParcelReader::job_of(const Read& read, const Share& share) const {
  auto job = std::make_shared<Job>();
  KVF_ASSIGN_OR_RETURN(job->pairs, local_pairs(read, share.plan.pairs));
  job->operation = Operation::read;
  job->bytes = share.plan.pairs.bytes();
  job->deadline = read.request.deadline;
  job->table = share.owner.regions;
  const RegionInfo* region = nullptr;
  job->remote.reserve(job->pairs.size());
  for (const Pair& pair : job->pairs) {
    if (region == nullptr || region->id != pair.region) region = job->table->find(pair.region);
    if (region == nullptr || !check_span(*region, pair.offset, pair.length).ok())
      return Error{ErrorCode::protocol, "the ticket's regions do not hold its layout"};
    job->remote.push_back(region);
  }
  return job;
}

void ParcelReader::read_one_sided(const ReadPtr& read, size_t index, OneSidedPath& path) {
  Share& share = read->shares[index];
  if (share.digest) ask_check(share);
  if (read->over || share.state != ReadState::reading) return;  // the session broke over it
  auto made = job_of(*read, share);
  if (!made) return give_up(read, ReadState::failed, made.error(), index);
  const std::shared_ptr<Job> job = *made;
  share.bytes = job->bytes;
  read->fabric = path.fabric();
  share.job = job;
  share.job_path = &path;
  const auto held_if_current = [alive = alive_, weak = std::weak_ptr<Read>(read), index, raw = job.get()] {
    const ReadPtr held = weak.lock();
    return *alive && held && !held->over && held->shares[index].job.get() == raw ? held : nullptr;
  };
  const bool directly = reaches_directly(*read, share);
  if (directly) {
    job->local_ops = read->ops;
    // A fabric's device knows memory by its regions, and keeps those that it cannot let go of (I4).
    for (const RegionPin& pin : read->pins) job->pins.push_back(pin.another());
  }
  if (directly && !share.digest) {
    job->done = [this, held_if_current, index](Status status) {
      if (const ReadPtr held = held_if_current()) on_share_read(held, index, std::move(status), std::nullopt);
    };
    return path.start(job);
  }
  const auto done = [this, held_if_current, index, asked = share.digest](Status status, uint64_t digest) {
    if (const ReadPtr held = held_if_current())
      on_share_read(held, index, std::move(status), asked ? std::optional(digest) : std::nullopt);
  };
  if (read->ops->host_addressable()) {
    share.pieces = std::make_shared<DigestedRead>(path, job, done);
  } else if (directly) {
    auto landing = target_of(*read, share.plan.selection);
    if (!landing) return give_up(read, ReadState::failed, landing.error(), index);
    share.pieces = std::make_shared<MappedRead>(path, loop_, core_.lanes().staging(), job, std::move(*landing), done);
  } else {
    share.pieces = std::make_shared<StagedRead>(path, core_.lanes().staging(), *read->ops, job, share.digest, done);
  }
  const std::shared_ptr<PiecedRead> pieces = share.pieces;  // its end may come at once, and drops it
  pieces->start();
}

// The owner computes its digest while the bytes are copied here, and has it when it is asked for the verdict.
void ParcelReader::ask_check(const Share& share) {
  proto::Frame frame;
  frame.mutable_check()->set_number(share.number);
  frame.mutable_check()->set_generation(share.generation);
  frame.mutable_check()->set_selection(encode(share.plan.selection));
  core_.peer(share.peer).session()->send_parcel(frame);
}

void ParcelReader::read_stream(const ReadPtr& read, size_t index, Result<CacheWalk> target) {
  Share& share = read->shares[index];
  if (!target) return give_up(read, ReadState::failed, target.error(), index);
  share.bytes = target->left();
  read->fabric = "tcp";
  proto::Claim claim = claim_of(*read, share);
  claim.set_selection(encode(share.plan.selection));
  const std::weak_ptr<Read> weak = read;
  const auto on_head = [this, alive = alive_, weak, index](ByteSpan head) {
    const ReadPtr held = weak.lock();
    if (!*alive || held == nullptr || held->over) return;
    proto::Ticket ticket;
    Share& owner_share = held->shares[index];
    const bool parsed = proto::parse(ticket, head);
    if (!parsed || !take_ticket(owner_share, ticket).ok()) owner_share.generation = 0;  // the verdict will not count
    if (owner_share.digest) owner_share.sink->want_digest();
    extend_in_time(held);
  };
  const auto on_end = [this, alive = alive_, weak, index](Result<std::string> trailer) {
    const ReadPtr held = weak.lock();
    if (*alive && held != nullptr && !held->over) on_stream_end(held, index, std::move(trailer));
  };
  const auto go_on = [this, alive = alive_, weak, index] {
    const ReadPtr held = weak.lock();
    if (!*alive || held == nullptr || held->over) return;
    tcp::FetchPath* path = core_.peer(held->shares[index].peer).fetch_path();
    if (path != nullptr) path->go_on(held->shares[index].fetch);
  };
  share.sink = std::make_shared<ParcelSink>(
      ParcelSink::Parts{core_.lanes().staging(), *read->ops, std::move(*target), on_head, on_end, go_on});
  share.fetch = core_.peer(share.peer).fetch_path()->start(claim.SerializeAsString(), share.sink);
}

void ParcelReader::on_stream_end(const ReadPtr& read, size_t index, Result<std::string> trailer) {
  Share& share = read->shares[index];
  share.fetch = 0;
  if (!trailer) {
    const ErrorCode code = trailer.error().code;
    if (code == ErrorCode::peer_lost || code == ErrorCode::unavailable)
      return retry_share(read, index, trailer.error());
    return on_share_read(read, index, trailer.error(), std::nullopt);
  }
  proto::Verdict verdict;
  Status status;
  if (!proto::parse(verdict, *trailer) || share.generation == 0)
    status = Error{ErrorCode::protocol, "stream that cannot be understood"};
  else if (verdict.code() != 0)
    status = Error{ErrorCode::stale, verdict.message()};
  else if (share.digest && verdict.digest() != digest_of_share(*read, share))
    status = Error{ErrorCode::stale, "the digest of what was read differs"};
  share.sink.reset();
  on_share_read(read, index, std::move(status), std::nullopt);
}

// The bytes are here. `digest`: the owner has to compare it; without one the verdict is at hand.
void ParcelReader::on_share_read(const ReadPtr& read, size_t index, Status status, std::optional<uint64_t> digest) {
  Share& share = read->shares[index];
  // No connection of the fabric: perhaps by the next, or by another.
  if (!status.ok() && status.error().code == ErrorCode::unavailable && share.job)
    return retry_share(read, index, status.error());
  bool owner_judges = digest.has_value();
  if (status.ok() && share.job) {
    // I1, DESIGN.md: the bytes count only if the generation is still in force behind the last of them.
    const OneSidedPath* path = core_.peer(share.peer).one_sided_path();
    const auto in_force = path != nullptr ? path->in_force(share.word, share.generation) : false;
    owner_judges |= !in_force.has_value();
    if (in_force.has_value() && !*in_force)
      status = Error{ErrorCode::stale, "the parcel was given back while it was read"};
  }
  let_go_of_job(share);
  share.pieces.reset();
  if (!status.ok()) {
    const ErrorCode code = status.error().code;
    const ReadState state = code == ErrorCode::gone                                    ? ReadState::gone
                            : code == ErrorCode::conflict                              ? ReadState::conflict
                            : code == ErrorCode::stale || code == ErrorCode::not_found ? ReadState::stale
                                                                                       : ReadState::failed;
    return give_up(read, state, status.error(), index);
  }
  share.state = transition(share.state, ReadEvent::read_done);
  read->bytes += share.bytes;
  const bool one_way = !owner_judges;
  // Before the owner is told: the session may break over it, and shares without a verdict are read again then.
  if (one_way) share.state = transition(share.state, ReadEvent::verdict_valid);
  share.read_digest = digest.value_or(0);
  settle(read, share, one_way);
  if (one_way && !read->over) accept_share(read, index);
}

// Of the bytes as they came by the stream.
uint64_t ParcelReader::digest_of_share(const Read&, const Share& share) {
  return share.sink->digest();
}

// When every owner's layout is known from before and only streams are to be had, the claim travels with the fetch and
// the whole parcel takes one round trip.
bool ParcelReader::try_one_stream(const ReadPtr& read) {
  ParcelRead& request = read->request;
  if (request.end_token == 0) return false;
  std::vector<CacheSide> owners;
  for (Share& share : read->shares) {
    Peer& peer = core_.peer(share.peer);
    const auto known = known_.find(share.peer);
    if (peer.session() == nullptr || peer.fetch_path() == nullptr) return false;
    if (known == known_.end() || known->second.incarnation != peer.session()->peer().incarnation) return false;
    share.owner = known->second;
    if (reaches(*read, share)) return false;
    share.incarnation = known->second.incarnation;
    share.owner_id = peer.session()->peer().engine_id;
    owners.push_back({share.owner.layout.get(), {}});
  }
  auto plan = plan_selections(owners, {{request.layout.get(), request.blocks}, request.first_token, request.end_token});
  if (!plan || plan->shares.size() != read->shares.size()) return false;
  for (size_t i = 0; i < read->shares.size(); ++i) {
    const ParallelRank& rank = read->shares[i].owner.layout->rank;
    if (plan->shares[i].owner != RankId{rank.pp_rank, rank.tp_rank} || plan->shares[i].selection.parts.empty())
      return false;
  }
  // An owner must have heard of a claim before it can hear that the read has failed, and give its blocks back.
  std::vector<CacheWalk> targets;
  for (size_t i = 0; i < read->shares.size(); ++i) {
    auto target = target_of(*read, plan->shares[i].selection);
    if (!target) return false;
    targets.push_back(std::move(*target));
  }
  for (size_t i = 0; i < read->shares.size(); ++i) read->shares[i].plan = std::move(plan->shares[i]);
  read->planned = true;
  for (size_t i = 0; i < read->shares.size() && !read->over; ++i) {
    read->shares[i].state = transition(read->shares[i].state, ReadEvent::ticket);
    read_stream(read, i, std::move(targets[i]));
  }
  return true;
}

}  // namespace kvferry
