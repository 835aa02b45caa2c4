#include "engine/session/initiator_session.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/session/messages.h"

namespace kvferry {

namespace {

constexpr size_t kNotifyWindow = size_t{1} << 20;  // bytes in the queue, beyond which notifications wait
constexpr size_t kMaxKeyBytes = size_t{64} << 20;  // of a peer's regions (I6)

}  // namespace

InitiatorSession::InitiatorSession(Context context, std::unique_ptr<Stream> stream, Address address,
                                   std::string expected_engine_id)
    : context_(std::move(context)),
      address_(std::move(address)),
      last_heard_(context_.loop.now()),
      watch_(context_.loop),
      frames_(std::move(stream), *this, context_.frame_limits, encode_session_preface()) {
  send_hello(expected_engine_id);
  watch_.arm(after(context_.loop.now(), context_.connect_patience), [this] {
    finish(Error{ErrorCode::unavailable,
                 fmt::format("no answer to hello for {:.1f} s", seconds(context_.connect_patience))});
  });
}

InitiatorSession::~InitiatorSession() {
  state_ = State::over;
  if (link_) link_->close();
}

void InitiatorSession::finish(const Error& why) {
  if (state_ == State::over) return;
  state_ = State::over;
  watch_.cancel();
  frames_.close(true);
  if (link_) link_->close();
  for (auto& [number, done] : std::exchange(notifies_, {})) done(why);
  for (auto& [notification, done] : std::exchange(held_, {})) done(why);
  syncs_.clear();
  fences_.clear();  // never answered: the far side stays unknown
  context_.ended(why);
}

void InitiatorSession::on_frames_lost(Error error) {
  if (state_ == State::greeting && error.code == ErrorCode::peer_lost)
    error = Error{ErrorCode::unavailable, "the other side closed the connection during hello", error.to_string()};
  lose(error);
}

void InitiatorSession::lose(const Error& why) {
  if (state_ == State::over) return;
  ended_by_peer_ = true;
  finish(why);
}

void InitiatorSession::end(const Error& why) {
  if (state_ == State::over) return;
  if (state_ == State::ready && context_.leaving && context_.leaving()) tell_regions_quiet(UINT64_MAX);
  if (state_ == State::over) return;
  proto::Frame frame;
  frame.mutable_refusal()->set_code(static_cast<uint32_t>(why.code));
  frame.mutable_refusal()->set_message(short_text(why.to_string()));
  frames_.send(frame);
  finish(why);
}

void InitiatorSession::send_hello(const std::string& expected_engine_id) {
  proto::Frame frame;
  proto::Hello& hello = *frame.mutable_hello();
  hello.set_version_min(kProtocolMin);
  hello.set_version_max(kProtocolMax);
  for (const std::string& feature : context_.identity.features) hello.add_features(feature);
  hello.set_engine_id(context_.identity.engine_id);
  hello.set_incarnation(context_.identity.incarnation);
  hello.set_auth_mode(auth_to_proto(context_.identity.auth));
  *hello.mutable_host() = host_to_proto(context_.identity.host);
  hello.set_heartbeat_ms(to_milliseconds(context_.identity.heartbeat));
  hello.set_expected_engine_id(expected_engine_id);
  hello.set_replaces_session(context_.replaces);
  for (const FabricSelf& fabric : context_.identity.fabrics) {
    proto::FabricOffer& offer = *hello.add_fabrics();
    offer.set_name(fabric.name);
    offer.set_client(fabric.client);
  }
  frames_.send(frame);
}

void InitiatorSession::beat() {
  // After a stop of ours, what has come meanwhile says more than the clock does.
  if (silence() > context_.identity.patience) frames_.read_input();
  if (state_ == State::over) return;
  const TimePoint now = context_.loop.now();
  const Duration silence = now - last_heard_;
  if (silence > context_.identity.patience)
    return finish(Error{ErrorCode::peer_lost, fmt::format("no heartbeat for {:.1f} s", seconds(silence))});
  proto::Frame frame;
  frame.mutable_heartbeat()->set_number(next_number_++);
  last_beat_ = now;
  watch_.arm(now + context_.identity.heartbeat, [this] { beat(); });
  frames_.send(frame);
}

void InitiatorSession::on_frame(const proto::Frame& frame) {
  if (state_ == State::over) return;
  last_heard_ = context_.loop.now();
  if (frame.body_case() == proto::Frame::kRefusal)
    return finish(
        Error{code_from_wire(frame.refusal().code()), "refused by the peer", short_text(frame.refusal().message())});
  if (frame.body_case() == proto::Frame::kWelcome) return on_welcome(frame);
  if (state_ == State::greeting) return end(Error{ErrorCode::protocol, "the peer's first frame is no welcome"});
  switch (frame.body_case()) {
    case proto::Frame::kRegions:
      return on_regions(frame);
    case proto::Frame::kLocalAttached:
      return on_attached(frame);
    case proto::Frame::kNotifyAck:
      return on_notify_ack(frame);
    case proto::Frame::kHeartbeatEcho:
      return on_heartbeat(frame);
    case proto::Frame::kFenced: {
      auto entry = fences_.extract(frame.fenced().number());
      if (!entry.empty()) entry.mapped()();
      return;
    }
    case proto::Frame::kLaneTokens: {
      keep_tokens(frame.lane_tokens().tokens());
      for (const Task& again : std::exchange(waiting_for_tokens_, {})) again();
      return;
    }
    case proto::Frame::kTicket:
    case proto::Frame::kVerdict:
    case proto::Frame::kReleased:
      return context_.parcel_answer(frame);
    default:
      return;  // I9, DESIGN.md: unknown frames are ignored
  }
}

void InitiatorSession::on_welcome(const proto::Frame& frame) {
  const proto::Welcome& welcome = frame.welcome();
  if (state_ != State::greeting) return end(Error{ErrorCode::protocol, "welcome came twice"});
  if (welcome.engine_id().empty() || welcome.engine_id().size() > kMaxEngineId)
    return end(Error{ErrorCode::protocol, "welcome without a usable engine id"});
  if (welcome.version() < kProtocolMin || welcome.version() > kProtocolMax)
    return end(Error{ErrorCode::unsupported, fmt::format("the peer chose protocol version {}", welcome.version())});
  if (Status status = check_auth_mode(welcome.auth_mode(), context_.identity.auth); !status.ok())
    return end(status.error());
  // Neither a shared secret nor names of a group tell their holders apart: somebody between could lead this engine's
  // own words back to it.
  if (context_.identity.auth != AuthMode::open && welcome.engine_id() == context_.identity.engine_id &&
      welcome.incarnation() == context_.identity.incarnation && !context_.identity.is_own(address_))
    return end(Error{ErrorCode::permission_denied, "this engine itself answers at the peer's address"});
  peer_ = {welcome.engine_id(), welcome.incarnation(), host_from_proto(welcome.host()), {}};
  constexpr int kMaxFabrics = 20;  // I6
  for (int i = 0; i < std::min(welcome.fabrics_size(), kMaxFabrics); ++i)
    if (is_fabric_name(welcome.fabrics(i).name()))
      peer_.fabrics.emplace(welcome.fabrics(i).name(), short_text(welcome.fabrics(i).address()));
  session_id_ = welcome.session_id();
  keep_tokens(welcome.lane_tokens());
  state_ = State::syncing;
  round_trip_ = context_.loop.now() - last_beat_;
  if (!context_.use_local)
    settle_without_local("switched off here");
  else if (!peer_.fabrics.contains("local"))
    settle_without_local("not offered by the peer");
  else if (!peer_.host.same_host(context_.identity.host))
    settle_without_local("another host or pid namespace");
  else
    start_attach(welcome.local_challenge());
  beat();
}

template <class Tokens>
void InitiatorSession::keep_tokens(const Tokens& tokens) {
  constexpr size_t kMaxTokens = 64;  // (I6) a peer that sends more has them ignored
  for (const std::string& token : tokens)
    if (token.size() == Preface::kTokenBytes && tokens_.size() < kMaxTokens) tokens_.push_back(token);
}

void InitiatorSession::start_attach(uint64_t challenge) {
  auto link = local::Link::prepare(peer_.host, challenge, context_.random.next());
  if (!link) return settle_without_local(link.error().to_string());
  attaching_ = std::move(*link);
  const local::AttachRequest request = attaching_->request();
  proto::Frame frame;
  frame.mutable_local_attach()->set_proof_address(request.proof_address);
  frame.mutable_local_attach()->set_challenge(request.challenge);
  frame.mutable_local_attach()->set_slots_fd(request.slots_fd);
  frames_.send(frame);
}

void InitiatorSession::on_attached(const proto::Frame& frame) {
  const proto::LocalAttached& attached = frame.local_attached();
  if (!attaching_) return end(Error{ErrorCode::protocol, "attached without being asked"});
  const std::shared_ptr<local::Link> link = std::move(attaching_);
  if (attached.code() != 0) return settle_without_local(short_text(attached.message()));
  const Status status = link->complete(
      {attached.proof_address(), attached.words_fd(), attached.session_word(), attached.session_generation()});
  if (!status.ok()) return settle_without_local(status.error().to_string());
  link_ = link;
  local_settled_ = true;
  become_ready_if_synced();
}

void InitiatorSession::settle_without_local(std::string why) {
  why_not_local_ = std::move(why);
  local_settled_ = true;
  become_ready_if_synced();
}

Error InitiatorSession::too_many_regions() const {
  return Error{ErrorCode::resource_exhausted,
               fmt::format("the peer's region table is over max_regions ({})", context_.max_regions)};
}

Error InitiatorSession::too_many_keys() {
  return Error{ErrorCode::resource_exhausted,
               fmt::format("the keys of the peer's region table are over {} MiB", kMaxKeyBytes >> 20)};
}

void InitiatorSession::on_regions(const proto::Frame& frame) {
  const proto::RegionDelta& delta = frame.regions();
  if (delta.reset()) {
    reset_ = true;
    added_.clear();
    removed_.clear();
  }
  for (const proto::Region& region : delta.added()) {
    auto info = region_from_proto(region);
    if (!info) return end(info.error());
    added_key_bytes_ += key_bytes(*info);
    added_.push_back(*info);
  }
  removed_.insert(removed_.end(), delta.removed().begin(), delta.removed().end());
  // What arrives may hold as much again as the table: everything that was there may have been replaced.
  if (added_.size() > context_.max_regions || removed_.size() > 2 * context_.max_regions)
    return end(too_many_regions());
  if (added_key_bytes_ > kMaxKeyBytes) return end(too_many_keys());
  if (delta.complete()) keep_for_table(delta.version());
}

void InitiatorSession::keep_for_table(uint64_t version) {
  if (!changes_) {
    changes_.emplace();
    context_.loop.defer([this, weak = std::weak_ptr<bool>(alive_)] {
      if (!weak.expired()) apply_regions();
    });
  }
  if (reset_) *changes_ = {{}, {}, true, 0};
  for (const RegionId id : removed_) changes_->added.erase(id);
  changes_->removed.insert(changes_->removed.end(), removed_.begin(), removed_.end());
  for (const RegionInfo& region : added_) changes_->added[region.id] = region;
  changes_->version = version;
  added_.clear();
  removed_.clear();
  reset_ = false;
  if (changes_->added.size() > context_.max_regions) end(too_many_regions());
}

void InitiatorSession::apply_regions() {
  if (!changes_ || state_ == State::over) return;
  const RegionChanges changes = std::move(*changes_);
  changes_.reset();
  std::vector<RegionInfo> added;
  added.reserve(changes.added.size());
  for (const auto& [id, region] : changes.added) added.push_back(region);
  if (changes.reset || !added.empty() || !changes.removed.empty())
    regions_ = RegionTable::next(changes.reset ? RegionTable() : *regions_, added, changes.removed);
  added_key_bytes_ = 0;
  if (regions_->regions().size() > context_.max_regions) return end(too_many_regions());
  if (regions_->key_bytes() > kMaxKeyBytes) return end(too_many_keys());
  regions_version_ = changes.version;
  if (link_) link_->imports().keep_only(*regions_);
  regions_known_ = true;
  become_ready_if_synced();
  if (state_ == State::ready) context_.regions_changed();
}

void InitiatorSession::become_ready_if_synced() {
  if (state_ != State::syncing || !regions_known_ || !local_settled_) return;
  state_ = State::ready;
  context_.ready();
}

void InitiatorSession::tell_regions_quiet(uint64_t version) {
  if (state_ != State::ready) return;
  proto::Frame frame;
  frame.mutable_regions_quiet()->set_version(version);
  frames_.send(frame);
}

void InitiatorSession::tell_regions_known(uint64_t version) {
  if (state_ != State::ready) return;
  proto::Frame frame;
  frame.mutable_regions_quiet()->set_known(version);
  frames_.send(frame);
}

void InitiatorSession::on_heartbeat(const proto::Frame& frame) {
  const auto entry = syncs_.extract(frame.heartbeat_echo().number());
  if (entry.empty()) {
    round_trip_ = context_.loop.now() - last_beat_;
    return;
  }
  apply_regions();
  if (state_ != State::over) entry.mapped()();
}

void InitiatorSession::sync(Task synced) {
  const uint64_t number = next_number_++;
  syncs_.emplace(number, std::move(synced));
  proto::Frame frame;
  frame.mutable_heartbeat()->set_number(number);
  frames_.send(frame);
}

// A burst of large notifications waits here, not in the frames' queue: a full one means that the peer does not read.
void InitiatorSession::notify(const Notification& notification, NotifyDone done) {
  if (!held_.empty() || frames_.queued_bytes() > kNotifyWindow)
    held_.emplace_back(notification, std::move(done));
  else
    send_notify(notification, std::move(done));
}

void InitiatorSession::on_frames_drained() {
  while (!held_.empty() && state_ == State::ready && frames_.queued_bytes() <= kNotifyWindow) {
    auto [notification, done] = std::move(held_.front());
    held_.pop_front();
    send_notify(notification, std::move(done));
  }
}

void InitiatorSession::send_notify(const Notification& notification, NotifyDone done) {
  const uint64_t number = next_number_++;
  notifies_.emplace(number, std::move(done));
  proto::Frame frame;
  frame.mutable_notify()->set_number(number);
  frame.mutable_notify()->set_name(notification.name);
  frame.mutable_notify()->set_payload(notification.payload);
  frames_.send(frame);
}

void InitiatorSession::on_notify_ack(const proto::Frame& frame) {
  const proto::NotifyAck& ack = frame.notify_ack();
  auto entry = notifies_.extract(ack.number());
  if (entry.empty()) return;
  Status status;
  if (ack.code() != 0) status = Error{code_from_wire(ack.code()), "notification refused by the peer", ack.message()};
  entry.mapped()(std::move(status));
}

void InitiatorSession::send_parcel_at_leisure(const proto::Frame& frame) {
  frames_.hold(frame);
  if (std::exchange(flush_planned_, true)) return;
  context_.loop.before_sleep([this, weak = std::weak_ptr<bool>(alive_)] {
    if (weak.expired()) return;
    flush_planned_ = false;
    frames_.flush_held();
  });
}

Result<std::optional<tcp::LaneSource::NewLane>> InitiatorSession::open_lane(Task again) {
  if (state_ != State::ready) return std::optional<NewLane>();  // run/ ends what waits for one, and knows why
  if (tokens_.empty()) {
    if (waiting_for_tokens_.empty()) {
      proto::Frame frame;
      frame.mutable_lane_tokens_wanted();
      frames_.send(frame);
    }
    waiting_for_tokens_.push_back(std::move(again));
    return std::optional<NewLane>();
  }
  KVF_ASSIGN_OR_RETURN(auto stream, context_.network.dial(address_));
  const uint32_t id = next_lane_++;
  std::string preface = encode_lane_preface({session_id_, tokens_.front(), id});
  tokens_.pop_front();
  return std::optional<NewLane>(NewLane{std::move(stream), id, std::move(preface)});
}

void InitiatorSession::fence_lane(uint32_t id, Task fenced) {
  if (state_ != State::ready) return;
  const uint64_t number = next_number_++;
  fences_.emplace(number, std::move(fenced));
  proto::Frame frame;
  frame.mutable_fence()->set_number(number);
  frame.mutable_fence()->set_lane_id(id);
  frames_.send(frame);
}

}  // namespace kvferry
