#include "engine/parcel/reader.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/parcel/parcel_types.h"
#include "engine/session/messages.h"

// A read from its first claim to its outcome. How the bytes come is in reader_bytes.cc.

namespace kvferry {
namespace {

constexpr int kMaxAttempts = 8;  // sessions that may break under one claim
constexpr Duration kShortestExtension = std::chrono::milliseconds(5);

ReadState state_of_refusal(ErrorCode code) {
  switch (code) {
    case ErrorCode::gone:
      return ReadState::gone;
    case ErrorCode::conflict:
      return ReadState::conflict;
    case ErrorCode::stale:
      return ReadState::stale;
    default:
      return ReadState::failed;
  }
}

}  // namespace

ParcelReader::~ParcelReader() {
  *alive_ = false;
  const auto reads = reads_;
  for (const auto& [id, read] : reads)
    give_up(read, ReadState::cancelled, Error{ErrorCode::cancelled, "shutting down"});
}

ParcelReader::ReadId ParcelReader::read(ParcelRead request, Done done) {
  auto read = std::make_shared<Read>();
  read->id = next_read_++;
  read->request = std::move(request);
  read->done = std::move(done);
  read->began = loop_.now();
  reads_.emplace(read->id, read);
  read->timer = std::make_unique<Timer>(loop_);
  read->timer->arm(read->request.deadline, [this, read] {
    give_up(read, ReadState::failed, Error{ErrorCode::deadline_exceeded, "deadline exceeded"});
  });
  for (const EngineCore::PeerIndex peer : read->request.owners) {
    listen_to(peer);
    Share share;
    share.peer = peer;
    share.number = next_number_++;
    by_number_.emplace(share.number, std::pair{read, read->shares.size()});
    read->shares.push_back(std::move(share));
  }
  if (read->shares.empty()) {
    give_up(read, ReadState::failed, Error{ErrorCode::invalid_argument, "a read names at least one owner"});
  } else if (Status names = check_names(read->request.transfer_id, read->request.expected_instance_id,
                                        read->request.group_instance_id, read->request.fingerprint);
             !names.ok()) {
    give_up(read, ReadState::failed, names.error());
  } else if (Status status = pin_cache(*read); !status.ok()) {
    give_up(read, ReadState::failed, status.error());
  } else if (read->request.event != 0) {
    begin_when_free(read);
  } else {
    begin(read);
  }
  return read->id;
}

void ParcelReader::begin_when_free(const ReadPtr& read) {
  read->in_use = core_.lanes().staging().when(*read->ops, read->request.event,
                                              [this, alive = alive_, weak = std::weak_ptr(read)](const Status& status) {
                                                const ReadPtr held = weak.lock();
                                                if (!*alive || held == nullptr || held->over) return;
                                                if (!status.ok())
                                                  return give_up(held, ReadState::failed, status.error());
                                                begin(held);
                                              });
}

void ParcelReader::begin(const ReadPtr& read) {
  read->begun = true;
  if (try_one_stream(read)) return;
  for (size_t index = 0; index < read->shares.size() && !read->over; ++index) start_share(read, index);
}

void ParcelReader::cancel(ReadId id) {
  const auto found = reads_.find(id);
  if (found == reads_.end()) return;
  const ReadPtr read = found->second;
  give_up(read, ReadState::cancelled, Error{ErrorCode::cancelled, "cancelled by the caller"});
}

void ParcelReader::end_users_of(const RegionState& region) {
  const auto reads = reads_;
  for (const auto& [id, read] : reads)
    if (std::any_of(read->pins.begin(), read->pins.end(), [&](const RegionPin& pin) { return pin.get() == &region; }))
      give_up(read, ReadState::cancelled, Error{ErrorCode::cancelled, "its local region was unregistered"});
}

// ---- sessions

void ParcelReader::listen_to(EngineCore::PeerIndex peer) {
  if (std::exchange(listening_[peer], true)) return;
  Peer::ParcelListener listener;
  listener.answer = [this, alive = alive_, peer](const proto::Frame& frame) {
    if (*alive) on_answer(peer, frame);
  };
  listener.session_ended = [this, alive = alive_, peer](const Error& why) {
    if (*alive) on_session_ended(peer, why);
  };
  core_.peer(peer).set_parcel_listener(std::move(listener));
}

void ParcelReader::on_answer(EngineCore::PeerIndex peer, const proto::Frame& frame) {
  if (frame.has_released()) {
    const auto released = releases_.find(frame.released().number());
    if (released != releases_.end() && released->second.owner == peer) releases_.erase(released);
    return;
  }
  uint64_t number = 0;
  if (frame.has_ticket()) number = frame.ticket().number();
  if (frame.has_verdict()) number = frame.verdict().number();
  const auto found = by_number_.find(number);
  if (found == by_number_.end()) return;
  const ReadPtr read = found->second.first.lock();
  const size_t index = found->second.second;
  // An answer counts only for the claim that it names, at the owner that was asked.
  if (read == nullptr || read->over || read->shares[index].peer != peer) return;
  if (frame.has_ticket()) return on_ticket(read, index, frame.ticket());
  if (frame.has_verdict()) return on_verdict(read, index, frame.verdict());
}

void ParcelReader::on_session_ended(EngineCore::PeerIndex peer, const Error& why) {
  const auto reads = reads_;
  for (const auto& [id, read] : reads)
    for (size_t index = 0; index < read->shares.size() && read->begun && !read->over; ++index)
      if (read->shares[index].peer == peer && !is_final(read->shares[index].state)) retry_share(read, index, why);
  send_releases_again(peer);
}

// What the owner was asked is asked again, under its number: the claim, which it grants as before, or the verdict.
void ParcelReader::retry_share(const ReadPtr& read, size_t index, const Error& why) {
  Share& share = read->shares[index];
  if (share.starting) return;  // told of the same break by another way
  const bool quiet = stop_share(share);
  share.last_error = why.to_string();
  // Nothing else may be read into blocks that something late may still land in.
  if (!quiet || ++share.attempts > kMaxAttempts) return give_up(read, ReadState::failed, why, index);
  if (share.state != ReadState::settling) {
    share.state = ReadState::waiting;
    share.ticket = false;
  }
  share.starting = true;
  // In a later turn: the session that broke is still on the stack.
  loop_.defer([this, alive = alive_, read, index] {
    if (*alive && !read->over) start_share(read, index);
  });
}

// ---- claim and ticket

void ParcelReader::start_share(const ReadPtr& read, size_t index) {
  read->shares[index].starting = true;
  core_.peer(read->shares[index].peer).connect([this, alive = alive_, read, index](const Status& status) {
    if (!*alive || read->over) return;
    Share& share = read->shares[index];
    share.starting = false;
    if (!status.ok()) return retry_share(read, index, status.error());
    const uint64_t incarnation = core_.peer(share.peer).session()->peer().incarnation;
    share.owner_id = core_.peer(share.peer).session()->peer().engine_id;
    // I5: a number that another incarnation granted means nothing to this one.
    if (share.incarnation != 0 && share.incarnation != incarnation)
      return give_up(read, ReadState::gone, Error{ErrorCode::gone, "the owner has restarted"}, index);
    share.incarnation = incarnation;
    if (share.state == ReadState::settling) return settle(read, share, false);
    const auto known = known_.find(share.peer);
    if (known != known_.end() && known->second.incarnation == incarnation) share.owner = known->second;
    send_claim(read, share);
  });
}

proto::Claim ParcelReader::claim_of(const Read& read, const Share& share) const {
  proto::Claim claim;
  claim.set_number(share.number);
  claim.set_transfer_id(read.request.transfer_id);
  claim.set_expected_instance_id(read.request.expected_instance_id);
  const ParallelRank& rank = read.request.layout->rank;
  claim.mutable_group()->set_instance_id(read.request.group_instance_id);
  claim.mutable_group()->set_tp_size(rank.tp_size);
  claim.mutable_group()->set_pp_size(rank.pp_size);
  claim.mutable_group()->set_rank(rank.pp_rank * rank.tp_size + rank.tp_rank);
  claim.set_fingerprint(read.request.fingerprint);
  claim.set_remaining_ms(to_milliseconds(read.request.deadline - loop_.now()));
  claim.set_known_layout(share.owner.layout_hash);
  return claim;
}

void ParcelReader::send_claim(const ReadPtr& read, Share& share) {
  proto::Frame frame;
  *frame.mutable_claim() = claim_of(*read, share);
  core_.peer(share.peer).session()->send_parcel(frame);
}

// Everything in a ticket comes from outside and is checked before it is used.
Status ParcelReader::take_ticket(Share& share, const proto::Ticket& ticket) {
  if (!ticket.layout().empty()) {
    KVF_ASSIGN_OR_RETURN(KvLayout layout, decode_layout(as_bytes(ticket.layout())));
    std::vector<RegionInfo> regions;
    for (const proto::Region& region : ticket.regions()) {
      KVF_ASSIGN_OR_RETURN(const RegionInfo info, region_from_proto(region));
      regions.push_back(info);
    }
    share.owner =
        KnownOwner{share.incarnation, ticket.layout_hash(), std::make_shared<const KvLayout>(std::move(layout)),
                   RegionTable::next(RegionTable(), regions, {})};
    known_[share.peer] = share.owner;
  }
  if (share.owner.layout == nullptr || share.owner.layout_hash != ticket.layout_hash())
    return Error{ErrorCode::protocol, "ticket without a layout"};
  share.blocks.clear();
  for (const proto::BlockGroup& group : ticket.groups())
    share.blocks.push_back({group.first(), {group.block_ids().begin(), group.block_ids().end()}});
  share.generation = ticket.generation();
  share.word = ticket.word();
  share.tokens = ticket.tokens();
  share.digest = ticket.digest() != 0;
  share.lease = std::chrono::milliseconds(ticket.lease_ms());
  share.ticket = true;
  return {};
}

void ParcelReader::on_ticket(const ReadPtr& read, size_t index, const proto::Ticket& ticket) {
  Share& share = read->shares[index];
  if (share.state != ReadState::waiting || share.ticket) return;
  if (ticket.code() != 0) {
    const ErrorCode code = code_from_wire(ticket.code());
    share.state = state_of_refusal(code);  // the owner knows
    return give_up(read, state_of_refusal(code), Error{code, "claim refused: " + ticket.message()}, index);
  }
  const uint64_t planned_for = share.plan.pairs.empty() ? 0 : share.generation;
  if (Status status = take_ticket(share, ticket); !status.ok())
    return give_up(read, ReadState::failed, status.error(), index);
  extend_in_time(read);
  if (read->planned) {  // again, after a reconnect
    // I1, DESIGN.md: the plan's block ids are those of the ticket that it was made from, and mean nothing to another.
    if (planned_for != 0 && planned_for != share.generation)
      return give_up(read, ReadState::stale, Error{ErrorCode::stale, "another parcel has taken its id meanwhile"},
                     index);
    share.state = transition(share.state, ReadEvent::ticket);
    return read_share(read, index);
  }
  plan_when_complete(read);
}

// A lease that would end under the read is extended when half of it is gone, again and again while the claim lives; the
// owner's limit ends that. A read that must end sooner needs none.
void ParcelReader::extend_in_time(const ReadPtr& read) {
  if (read->extension && read->extension->armed()) return;
  Duration shortest = Duration::max();
  for (const Share& share : read->shares)
    if (share.ticket && !is_final(share.state)) shortest = std::min(shortest, share.lease);
  const TimePoint when = after(loop_.now(), std::max(shortest / 2, kShortestExtension));
  if (when >= read->request.deadline) return;
  if (!read->extension) read->extension = std::make_unique<Timer>(loop_);
  read->extension->arm(when, [this, weak = std::weak_ptr(read)] {
    const ReadPtr held = weak.lock();
    if (held == nullptr || held->over) return;
    proto::Frame frame;
    frame.mutable_extend()->set_transfer_id(held->request.transfer_id);
    for (const Share& share : held->shares) {
      InitiatorSession* session = core_.peer(share.peer).session();
      if (session != nullptr && share.ticket && !is_final(share.state)) session->send_parcel(frame);
      if (held->over) return;
    }
    extend_in_time(held);
  });
}

void ParcelReader::plan_when_complete(const ReadPtr& read) {
  std::vector<CacheSide> owners;
  uint64_t tokens = UINT64_MAX;
  for (const Share& share : read->shares) {
    if (!share.ticket) return;
    owners.push_back({share.owner.layout.get(), share.blocks});
    tokens = std::min(tokens, share.tokens);
  }
  ParcelRead& request = read->request;
  if (request.end_token == 0) request.end_token = static_cast<uint32_t>(tokens);
  if (request.end_token > tokens)
    return give_up(read, ReadState::failed,
                   Error{ErrorCode::invalid_argument,
                         fmt::format("wanted up to token {}, but the parcel covers {}", request.end_token, tokens)});
  auto plan = plan_reshard(owners, {{request.layout.get(), request.blocks}, request.first_token, request.end_token});
  if (!plan) return give_up(read, ReadState::failed, plan.error());
  for (OwnerShare& part : plan->shares) {
    const auto holder = std::find_if(read->shares.begin(), read->shares.end(), [&](const Share& share) {
      const ParallelRank& rank = share.owner.layout->rank;
      return rank.pp_rank == part.owner.pp && rank.tp_rank == part.owner.tp;
    });
    if (holder == read->shares.end())
      return give_up(read, ReadState::failed,
                     Error{ErrorCode::invalid_argument, fmt::format("owner rank pp {} tp {} is not among the owners",
                                                                    part.owner.pp, part.owner.tp)});
    holder->plan = std::move(part);
  }
  read->planned = true;
  for (size_t index = 0; index < read->shares.size() && !read->over; ++index) {
    Share& share = read->shares[index];
    share.state = transition(share.state, ReadEvent::ticket);
    read_share(read, index);
  }
}

// ---- verdicts

void ParcelReader::settle(const ReadPtr& read, Share& share, bool one_way) {
  InitiatorSession* session = core_.peer(share.peer).session();
  if (session == nullptr) return;
  proto::Frame frame;
  frame.mutable_settle()->set_number(share.number);
  frame.mutable_settle()->set_generation(share.generation);
  frame.mutable_settle()->set_more(read->request.more);
  frame.mutable_settle()->set_one_way(one_way);
  if (!one_way) {
    frame.mutable_settle()->set_digest(share.read_digest);
    frame.mutable_settle()->set_selection(encode(share.plan.selection));
    return session->send_parcel(frame);
  }
  session->send_parcel_at_leisure(frame);
}

void ParcelReader::on_verdict(const ReadPtr& read, size_t index, const proto::Verdict& verdict) {
  Share& share = read->shares[index];
  if (share.state != ReadState::settling) return;
  if (verdict.code() == 0) return accept_share(read, index);
  const ErrorCode code = code_from_wire(verdict.code());
  share.state = state_of_refusal(code);  // the owner knows
  give_up(read, state_of_refusal(code), Error{code, "not valid: " + verdict.message()}, index);
}

}  // namespace kvferry
