#include <fmt/format.h>

#include <algorithm>

#include "engine/parcel/owner.h"
#include "engine/session/messages.h"

// Claims: the group that they form, and how each of them ends.

namespace kvferry {
namespace {

uint32_t rank_index(const RankId& rank, uint32_t tp_size) {
  return rank.pp * tp_size + rank.tp;
}

}  // namespace

void ParcelOwner::on_parcel_frame(OwnerSession& session, const proto::Frame& frame) {
  const ReaderKey reader{session.engine_id(), session.incarnation()};
  if (const auto known = readers_.find(reader);
      known != readers_.end() && !known->second.sessions.empty() && known->second.sessions.back() != &session) {
    std::erase(known->second.sessions, &session);
    known->second.sessions.push_back(&session);
  }
  switch (frame.body_case()) {
    case proto::Frame::kClaim:
      return on_claim(session, frame.claim(),
                      [this, reader, number = frame.claim().number()](const Result<ClaimPtr>& granted) {
                        send_ticket(reader, number, granted);
                      });
    case proto::Frame::kSettle:
      return on_settle(session, frame.settle());
    case proto::Frame::kCheck:
      return on_check(reader, frame.check());
    case proto::Frame::kRelease: {
      proto::Frame answer;
      answer.mutable_released()->set_number(frame.release().number());
      release(frame.release().transfer_id(), frame.release().force());
      return session.send(answer);
    }
    case proto::Frame::kExtend: {
      const auto found = parcels_.find(frame.extend().transfer_id());
      if (found == parcels_.end()) return;
      Parcel& parcel = *found->second;
      const bool holds = std::any_of(parcel.live.begin(), parcel.live.end(),
                                     [&](const ClaimPtr& claim) { return claim->key.reader == reader; });
      if (!holds) return;
      set_expiry(parcel, std::max(parcel.expires, std::min(after(parts_.loop.now(), parcel.lease),
                                                           after(parcel.born, limits_.longest_lease))));
      return schedule_expiry();
    }
    default:
      return;
  }
}

// ---- claims

void ParcelOwner::on_claim(const Guest& session, const proto::Claim& asked, Granted granted) {
  const ClaimKey key{{session.engine_id(), session.incarnation()}, asked.number()};
  if (Status status = check_names(asked.transfer_id(), asked.expected_instance_id(), asked.group().instance_id(),
                                  asked.fingerprint());
      !status.ok())
    return granted(status.error());
  if (const auto kept = verdicts_.find(key); kept != verdicts_.end())
    return granted(Error{kept->second.valid ? ErrorCode::gone : kept->second.code,
                         "this claim has ended: " + kept->second.message});
  if (const auto known = claims_.find(key); known != claims_.end()) {
    // Asked again after a reconnect, or read by a fetch after its ticket.
    hear_of(*known->second, session);
    if (known->second->state == ClaimState::granted) {
      // It is read anew: what is being checked is no longer what the reader has.
      take_check(*known->second);
      return granted(known->second);
    }
    known->second->granted = std::move(granted);
    return;
  }
  if (!asked.expected_instance_id().empty() && asked.expected_instance_id() != instance_id_)
    return granted(Error{ErrorCode::gone, fmt::format("instance \"{}\" is not here any more; this is \"{}\"",
                                                      asked.expected_instance_id(), instance_id_)});
  if (buried(asked.transfer_id())) return granted(Error{ErrorCode::gone, "the parcel was released"});
  auto claim = std::make_shared<Claim>();
  claim->key = key;
  claim->transfer_id = asked.transfer_id();
  claim->by_fetch = !asked.selection().empty();
  // Not what else it may carry (I6).
  claim->asked.set_fingerprint(asked.fingerprint());
  claim->asked.set_remaining_ms(asked.remaining_ms());
  claim->asked.set_known_layout(asked.known_layout());
  proto::ReaderGroup& group = *claim->asked.mutable_group();
  group.set_instance_id(asked.group().instance_id());
  group.set_tp_size(asked.group().tp_size());
  group.set_pp_size(asked.group().pp_size());
  group.set_rank(asked.group().rank());
  claim->granted = std::move(granted);
  hear_of(*claim, session);
  claims_.emplace(key, claim);
  update_gauges();
  const auto found = parcels_.find(asked.transfer_id());
  const bool published = found != parcels_.end() && found->second->state != ParcelState::announced;
  if (published && found->second->filled) return grant(*found->second, claim);
  wait_for_publish(std::move(claim), found != parcels_.end());
}

void ParcelOwner::wait_for_publish(ClaimPtr claim, bool announced) {
  Reader& reader = readers_[claim->key.reader];
  if (reader.waiting >= limits_.waiting_per_reader) {
    claims_.erase(claim->key);
    update_gauges();
    return claim->granted(full("waiting_per_reader", limits_.waiting_per_reader));
  }
  if (waiting_claims_ >= limits_.waiting_claims) {
    claims_.erase(claim->key);
    update_gauges();
    return claim->granted(full("waiting_claims", limits_.waiting_claims));
  }
  ++reader.waiting;
  ++waiting_claims_;
  const TimePoint until = after(parts_.loop.now(), std::chrono::milliseconds(claim->asked.remaining_ms()));
  const TimePoint first = announced ? until : std::min(until, after(parts_.loop.now(), limits_.unknown_grace));
  claim->timer = std::make_unique<Timer>(parts_.loop);
  claim->timer->arm(first, [this, until, weak = std::weak_ptr<Claim>(claim)] {
    if (const ClaimPtr late = weak.lock()) on_late(late, until);
  });
  waiting_[claim->transfer_id].push_back(std::move(claim));
}

// A transfer that was announced meanwhile is waited for as long as the reader does.
void ParcelOwner::on_late(const ClaimPtr& claim, TimePoint until) {
  if (claim->state != ClaimState::waiting) return;
  const bool announced = parcels_.contains(claim->transfer_id);
  if (announced && parts_.loop.now() < until)
    return claim->timer->arm(until, [this, until, weak = std::weak_ptr<Claim>(claim)] {
      if (const ClaimPtr late = weak.lock()) on_late(late, until);
    });
  std::erase(waiting_[claim->transfer_id], claim);
  if (waiting_[claim->transfer_id].empty()) waiting_.erase(claim->transfer_id);
  stop_waiting(claim->key.reader);
  claim->state = transition(claim->state, ClaimEvent::fail);
  claims_.erase(claim->key);
  claim->granted(announced ? Error{ErrorCode::deadline_exceeded, "the parcel was not published in time"}
                           : Error{ErrorCode::gone, "no such transfer was announced here"});
  update_gauges();
}

void ParcelOwner::stop_waiting(const ReaderKey& key) {
  --waiting_claims_;
  if (const auto reader = readers_.find(key); reader != readers_.end()) --reader->second.waiting;
}

std::vector<ParcelOwner::ClaimPtr> ParcelOwner::take_waiting(const std::string& transfer_id) {
  auto entry = waiting_.extract(transfer_id);
  if (entry.empty()) return {};
  for (const ClaimPtr& claim : entry.mapped()) {
    claim->timer.reset();
    stop_waiting(claim->key.reader);
  }
  return std::move(entry.mapped());
}

void ParcelOwner::refuse_waiting(const std::string& transfer_id, const Error& why) {
  for (const ClaimPtr& claim : take_waiting(transfer_id)) {
    claim->state = transition(claim->state, ClaimEvent::fail);
    claims_.erase(claim->key);
    claim->granted(why);
  }
  update_gauges();
}

// The group that reads is the first claim's; from its sizes follows which ranks have to settle with this owner rank.
Status ParcelOwner::join_group(Parcel& parcel, const Claim& claim) {
  const proto::ReaderGroup& group = claim.asked.group();
  if (parcel.group.empty()) {
    if (group.instance_id().empty() || group.tp_size() < 1 || group.pp_size() < 1 ||
        uint64_t{group.tp_size()} * group.pp_size() > kMaxRanks)
      return Error{ErrorCode::invalid_argument, "the claim names no usable reader group"};
    parcel.group = group.instance_id();
    parcel.group_tp = group.tp_size();
    parcel.group_pp = group.pp_size();
    for (const RankId& rank : settling_readers(layout_.rank, group.tp_size(), group.pp_size()))
      parcel.ranks.emplace(rank_index(rank, group.tp_size()), RankState::expected);
  }
  if (parcel.group != group.instance_id() || parcel.group_tp != group.tp_size() || parcel.group_pp != group.pp_size())
    return Error{ErrorCode::conflict, fmt::format("reader group \"{}\" has the parcel", parcel.group)};
  if (!parcel.ranks.contains(group.rank()))
    return Error{ErrorCode::conflict,
                 fmt::format("rank {} of the reader group has nothing to settle here", group.rank())};
  return {};
}

Status ParcelOwner::admit(Parcel& parcel, Claim& claim) {
  if (claim.asked.fingerprint() != parcel.fingerprint)
    return Error{ErrorCode::conflict, "the fingerprint differs: this KV means something else to the reader"};
  if (parcel.live.size() >= limits_.claims_per_parcel) return full("claims_per_parcel", limits_.claims_per_parcel);
  return join_group(parcel, claim);
}

void ParcelOwner::grant(Parcel& parcel, const ClaimPtr& claim) {
  if (Status status = admit(parcel, *claim); !status.ok()) {
    claim->state = transition(claim->state, ClaimEvent::fail);
    claims_.erase(claim->key);
    claim->granted(status.error());
    return update_gauges();
  }
  const uint32_t rank = claim->asked.group().rank();
  const std::vector<ClaimPtr> others = parcel.live;
  parcel.live.push_back(claim);  // before the others go: a parcel without a live claim may end
  claim->parcel = &parcel;
  claim->state = transition(claim->state, ClaimEvent::grant);
  parcel.state = transition(parcel.state, ParcelEvent::claim);
  // A new incarnation of a rank takes the place of the one that died.
  for (const ClaimPtr& other : others)
    if (other->asked.group().rank() == rank && other->key.reader != claim->key.reader) fail_claim(other, true);
  parcel.ranks[rank] = RankState::expected;
  const Granted granted = std::exchange(claim->granted, nullptr);
  granted(claim);
}

// ---- the end of a claim

void ParcelOwner::on_settle(OwnerSession& session, const proto::Settle& asked) {
  const ClaimKey key{{session.engine_id(), session.incarnation()}, asked.number()};
  const auto found = claims_.find(key);
  if (asked.code() != 0) {  // the reader gave up
    if (found != claims_.end())
      fail_claim(ClaimPtr(found->second), asked.more());
    else if (!verdicts_.contains(key))  // a claim that comes with its fetch may still be on its way
      keep_verdict(key, Error{ErrorCode::gone, "the reader has given up"});
    if (!asked.one_way()) send_verdict(key);
    return;
  }
  if (found == claims_.end() || found->second->state != ClaimState::granted) {
    if (!asked.one_way()) send_verdict(key);
    return;
  }
  const ClaimPtr claim = found->second;
  hear_of(*claim, session);  // perhaps another than the one that it was made over
  // I1: a claim is live only while its parcel's generation is in force; what it read before that moved is refused.
  if (asked.generation() != claim->parcel->generation)
    return settle(claim, asked, Error{ErrorCode::stale, "another generation"});
  if (claim->parcel->digest && !asked.one_way()) return check_digest(claim, asked);
  settle(claim, asked, {});
}

// The answer that is kept, to the session that spoke last.
void ParcelOwner::send_verdict(const ClaimKey& key) {
  const auto reader = readers_.find(key.reader);
  if (reader == readers_.end() || reader->second.sessions.empty()) return;  // it asks again when it is back
  proto::Frame frame;
  proto::Verdict& answer = *frame.mutable_verdict();
  answer.set_number(key.number);
  if (const auto kept = verdicts_.find(key); kept != verdicts_.end()) {
    if (!kept->second.valid) answer.set_code(static_cast<uint32_t>(kept->second.code));
    answer.set_message(kept->second.message);
  } else {
    answer.set_code(static_cast<uint32_t>(ErrorCode::gone));
    answer.set_message("no such claim");
  }
  reader->second.sessions.back()->send(frame);
}

// The claim has ended while its digest was computed: the reader waits for its verdict.
void ParcelOwner::stop_checking(const ClaimPtr& claim) {
  const std::unique_ptr<Check> check = take_check(*claim);
  if (check && check->asked) send_verdict(claim->key);
}

void ParcelOwner::settle(const ClaimPtr& claim, const proto::Settle& asked, Status verdict) {
  Parcel& parcel = *claim->parcel;
  take_check(*claim);
  keep_verdict(claim->key, verdict);
  claim->state = transition(claim->state, verdict.ok() ? ClaimEvent::settle : ClaimEvent::fail);
  if (!asked.more()) parcel.ranks[claim->asked.group().rank()] = verdict.ok() ? RankState::settled : RankState::failed;
  if (!asked.one_way()) send_verdict(claim->key);
  leave_parcel(claim);
}

// `replaced`: another claim of the same rank stands in for it.
void ParcelOwner::fail_claim(const ClaimPtr& claim, bool replaced) {
  if (claim->state == ClaimState::waiting) {
    auto& queue = waiting_[claim->transfer_id];
    if (std::erase(queue, claim) > 0) stop_waiting(claim->key.reader);
    if (queue.empty()) waiting_.erase(claim->transfer_id);
    claim->timer.reset();
    claim->state = transition(claim->state, ClaimEvent::fail);
    claims_.erase(claim->key);
    if (const Granted granted = std::exchange(claim->granted, nullptr))
      granted(Error{ErrorCode::peer_lost, "the reader has given up, or its session has ended"});
    return update_gauges();
  }
  if (claim->state != ClaimState::granted) return;
  claim->state = transition(claim->state, ClaimEvent::fail);
  keep_verdict(claim->key, Error{ErrorCode::gone, "the claim has failed"});
  stop_checking(claim);
  if (!replaced) claim->parcel->ranks[claim->asked.group().rank()] = RankState::failed;
  leave_parcel(claim);
}

void ParcelOwner::leave_parcel(const ClaimPtr& claim) {
  Parcel& parcel = *std::exchange(claim->parcel, nullptr);
  std::erase(parcel.live, claim);
  claims_.erase(claim->key);
  review(parcel);
  update_gauges();
}

// After a claim has ended: whether the parcel has, too.
void ParcelOwner::review(Parcel& parcel) {
  if (!parcel.live.empty()) return;
  if (parcel.release_wanted) return end(parcel, ParcelEvent::release, ReleaseReason::released);
  const auto in = [&](RankState state) {
    return std::count_if(parcel.ranks.begin(), parcel.ranks.end(),
                         [&](const auto& rank) { return rank.second == state; });
  };
  if (in(RankState::failed) > 0) return end(parcel, ParcelEvent::reader_failed, ReleaseReason::reader_failed);
  if (in(RankState::expected) == 0) end(parcel, ParcelEvent::all_settled, ReleaseReason::settled);
}

void ParcelOwner::keep_verdict(const ClaimKey& key, const Status& verdict) {
  const TimePoint now = parts_.loop.now();
  Verdict kept{ErrorCode::gone, verdict.ok(), {}};
  if (!verdict.ok()) kept = {verdict.error().code, false, verdict.error().message};
  verdicts_.insert_or_assign(key, std::move(kept));
  verdict_order_.emplace_back(after(now, limits_.verdict_life), key);
  while (!verdict_order_.empty() &&
         (verdict_order_.front().first <= now || verdict_order_.size() > limits_.kept_verdicts)) {
    if (verdict_order_.front().first > now) refused("kept_verdicts");
    verdicts_.erase(verdict_order_.front().second);
    verdict_order_.pop_front();
  }
}

// ---- tickets

proto::Ticket ParcelOwner::ticket_of(const Claim& claim, const Parcel& parcel) const {
  proto::Ticket ticket;
  ticket.set_number(claim.key.number);
  ticket.set_generation(parcel.generation);
  ticket.set_word(parcel.word);
  ticket.set_tokens(parcel.tokens);
  ticket.set_lease_ms(to_milliseconds(parcel.expires - parts_.loop.now()));
  ticket.set_digest(parcel.digest ? 1 : 0);
  ticket.set_layout_hash(layout_hash_);
  if (claim.asked.known_layout() != layout_hash_) {
    ticket.set_layout(layout_bytes_);
    for (const RegionInfo& region : cache_regions_) *ticket.add_regions() = region_to_proto(region, true);
  }
  if (claim.by_fetch) return ticket;  // a stream needs no block ids
  for (const BlockList& blocks : parcel.blocks) {
    proto::BlockGroup& group = *ticket.add_groups();
    group.set_first(blocks.first);
    group.mutable_block_ids()->Add(blocks.ids.begin(), blocks.ids.end());
  }
  return ticket;
}

void ParcelOwner::send_ticket(const ReaderKey& key, uint64_t number, const Result<ClaimPtr>& granted) {
  const auto reader = readers_.find(key);
  if (reader == readers_.end() || reader->second.sessions.empty()) return;  // it asks again when it is back
  proto::Frame frame;
  if (granted) {
    *frame.mutable_ticket() = ticket_of(**granted, *(*granted)->parcel);
  } else {
    frame.mutable_ticket()->set_number(number);
    frame.mutable_ticket()->set_code(static_cast<uint32_t>(granted.error().code));
    frame.mutable_ticket()->set_message(granted.error().message);
  }
  reader->second.sessions.back()->send(frame);
}

}  // namespace kvferry
