#include "engine/session/owner_session.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/session/messages.h"

namespace kvferry {
namespace {

constexpr size_t kFirstTokens = 8;
constexpr size_t kMoreTokens = 4;
constexpr size_t kRegionBytes = size_t{256} << 10;  // of a frame; each may have a key for every rail
constexpr size_t kMaxFencedLanes = 1024;            // remembered; the oldest connections cannot still be on their way

}  // namespace

OwnerSession::OwnerSession(Context context, std::unique_ptr<Stream> stream)
    : context_(std::move(context)),
      session_id_(context_.random.next()),
      challenge_(context_.random.next()),
      last_heard_(context_.loop.now()),
      watch_(context_.loop),
      frames_(std::move(stream), *this, context_.frame_limits, {}) {
  watch_over_peer();
}

OwnerSession::~OwnerSession() {
  if (over_) return;  // and perhaps the lanes before it: it is destroyed in a later turn than it ends
  over_ = true;
  dismiss();
}

void OwnerSession::dismiss() {
  context_.lanes.drop_guest(*this);
  if (context_.local != nullptr) context_.local->detach(*this);
  for (const FabricGuests& fabric : context_.guests) fabric.guests->left(session_id_);
}

void OwnerSession::finish(const Error& why) {
  if (over_) return;
  over_ = true;
  watch_.cancel();
  frames_.close(true);
  dismiss();
  if (context_.parcels != nullptr && greeted_) context_.parcels->on_reader_left(*this);
  context_.ended(*this, why);
}

void OwnerSession::end(const Error& why) {
  if (over_) return;
  proto::Frame frame;
  frame.mutable_refusal()->set_code(static_cast<uint32_t>(why.code));
  frame.mutable_refusal()->set_message(short_text(why.to_string()));
  frames_.send(frame);
  finish(why);
}

bool OwnerSession::in_time() {
  const Duration silence = context_.loop.now() - last_heard_;
  if (silence <= context_.identity.patience) return true;
  finish(Error{ErrorCode::peer_lost, fmt::format("no heartbeat for {:.1f} s", seconds(silence))});
  return false;
}

void OwnerSession::watch_over_peer() {
  watch_.arm(context_.loop.now() + context_.identity.heartbeat, [this] {
    if (in_time() && takes_answers()) watch_over_peer();
  });
}

// Heartbeats alone would let it keep what its answers wait in: staging memory, and its places.
bool OwnerSession::takes_answers() {
  const Duration held_up = context_.lanes.held_up_by(*this);
  if (held_up <= context_.identity.patience * context_.limits.unread_lane) return true;
  end(Error{ErrorCode::resource_exhausted,
            fmt::format("the peer does not read its lane: it has taken nothing for {:.1f} s", seconds(held_up))});
  return false;
}

bool OwnerSession::still_welcome() {
  // The clock first: after a stop of ours, frames that lie in the socket are no sign that the peer still waits.
  if (over_ || !in_time()) return false;
  if (frames_.has_input()) frames_.read_input();
  return !over_;
}

void OwnerSession::on_frame(const proto::Frame& frame) {
  if (over_ || !in_time()) return;
  last_heard_ = context_.loop.now();
  if (frame.body_case() == proto::Frame::kHello) return on_hello(frame);
  if (!greeted_) return end(Error{ErrorCode::protocol, "the first frame of a session must be a hello"});
  switch (frame.body_case()) {
    case proto::Frame::kHeartbeat: {
      send_regions();  // the echo says "you know all there is": a registration may still be on its way to the loop
      proto::Frame echo;
      echo.mutable_heartbeat_echo()->set_number(frame.heartbeat().number());
      return frames_.send(echo);
    }
    case proto::Frame::kNotify:
      return on_notify(frame);
    case proto::Frame::kFence:
      return on_fence(frame);
    case proto::Frame::kLocalAttach:
      return on_attach(frame);
    case proto::Frame::kRegionsQuiet:
      for (const FabricGuests& fabric : context_.guests) {
        fabric.guests->quiet(session_id_, frame.regions_quiet().version());
        fabric.guests->known(session_id_, frame.regions_quiet().known());
      }
      return;
    case proto::Frame::kLaneTokensWanted: {
      proto::Frame answer;
      for (size_t i = 0; i < kMoreTokens; ++i) answer.mutable_lane_tokens()->add_tokens(fresh_token());
      return frames_.send(answer);
    }
    case proto::Frame::kRefusal:
      return finish(Error{ErrorCode::peer_lost, "the peer left", short_text(frame.refusal().message())});
    case proto::Frame::kClaim:
    case proto::Frame::kSettle:
    case proto::Frame::kRelease:
    case proto::Frame::kExtend:
    case proto::Frame::kCheck:
      if (context_.parcels != nullptr) context_.parcels->on_parcel_frame(*this, frame);
      return;
    default:
      return;  // I9, DESIGN.md: unknown frames are ignored
  }
}

// Whether this peer may have a session, and whether both sides can understand each other.
Status OwnerSession::judge(const proto::Frame& frame) {
  const proto::Hello& hello = frame.hello();
  if (greeted_) return Error{ErrorCode::protocol, "hello came twice"};
  if (hello.version_min() > kProtocolMax || hello.version_max() < kProtocolMin)
    return Error{ErrorCode::unsupported,
                 fmt::format("protocol versions do not overlap: peer speaks {} to {}, this engine {} to {}",
                             hello.version_min(), hello.version_max(), kProtocolMin, kProtocolMax)};
  for (const std::string& feature : hello.required_features())
    if (std::find(context_.identity.features.begin(), context_.identity.features.end(), feature) ==
        context_.identity.features.end())
      return Error{ErrorCode::unsupported, "this engine lacks the required feature \"" + feature + "\""};
  KVF_RETURN_IF_ERROR(check_auth_mode(hello.auth_mode(), context_.identity.auth));
  if (!hello.expected_engine_id().empty() && hello.expected_engine_id() != context_.identity.engine_id)
    return Error{ErrorCode::gone, fmt::format("engine \"{}\" is not here any more; this is \"{}\"",
                                              hello.expected_engine_id(), context_.identity.engine_id)};
  if (hello.engine_id().empty() || hello.engine_id().size() > kMaxEngineId)
    return Error{ErrorCode::protocol, "hello without a usable engine id"};
  return {};
}

void OwnerSession::on_hello(const proto::Frame& frame) {
  if (Status status = judge(frame); !status.ok()) return end(status.error());
  greeted_ = true;
  engine_id_ = frame.hello().engine_id();
  incarnation_ = frame.hello().incarnation();
  peer_host_ = host_from_proto(frame.hello().host());
  if (frame.hello().replaces_session() != 0) context_.replaces(*this, frame.hello().replaces_session());
  for (const proto::FabricOffer& offer : frame.hello().fabrics())
    for (const FabricGuests& fabric : context_.guests)
      if (fabric.fabric == offer.name()) fabric.guests->came(session_id_, offer.client());
  send_welcome();
  send_regions();
  if (context_.parcels != nullptr && !over_) context_.parcels->on_reader_came(*this);
}

std::string OwnerSession::fresh_token() {
  // Tokens that were never used bound what a peer can make us remember (I6).
  if (tokens_.size() >= context_.limits.lanes * 2) tokens_.erase(tokens_.begin());
  return *tokens_.insert(context_.random.token(Preface::kTokenBytes)).first;
}

void OwnerSession::send_welcome() {
  proto::Frame frame;
  proto::Welcome& welcome = *frame.mutable_welcome();
  welcome.set_version(kProtocolMax);
  for (const std::string& feature : context_.identity.features) welcome.add_features(feature);
  welcome.set_engine_id(context_.identity.engine_id);
  welcome.set_incarnation(context_.identity.incarnation);
  welcome.set_auth_mode(auth_to_proto(context_.identity.auth));
  *welcome.mutable_host() = host_to_proto(context_.identity.host);
  welcome.add_fabrics()->set_name("tcp");
  if (context_.local != nullptr) welcome.add_fabrics()->set_name("local");
  for (const FabricSelf& fabric : context_.identity.fabrics) {
    proto::FabricOffer& offer = *welcome.add_fabrics();
    offer.set_name(fabric.name);
    offer.set_address(fabric.address);
  }
  welcome.set_heartbeat_ms(to_milliseconds(context_.identity.heartbeat));
  welcome.set_session_id(session_id_);
  for (size_t i = 0; i < kFirstTokens; ++i) welcome.add_lane_tokens(fresh_token());
  welcome.set_local_challenge(challenge_);
  frames_.send(frame);
}

void OwnerSession::send_regions() {
  if (!greeted_ || over_) return;
  const Registry::Changes changes = context_.registry.changes_since(regions_sent_);
  if (regions_sent_ != 0 && changes.version == regions_sent_) return;
  regions_sent_ = changes.version;
  bool first = true;
  size_t at = 0;
  do {
    proto::Frame frame;
    proto::RegionDelta& delta = *frame.mutable_regions();
    if (first) {
      delta.set_reset(changes.reset);
      for (const RegionId id : changes.removed) delta.add_removed(id);
    }
    const size_t end = std::min(changes.added.size(), at + context_.limits.regions_per_frame);
    for (size_t bytes = 0; at < end && bytes < kRegionBytes; ++at) {
      proto::Region& added = *delta.add_added();
      added = region_to_proto(changes.added[at], changes.added[at].permissions != kPrivate);
      bytes += added.ByteSizeLong();
    }
    delta.set_version(changes.version);
    delta.set_complete(at == changes.added.size());
    frames_.send(frame);
    first = false;
  } while (at < changes.added.size() && !over_);
}

void OwnerSession::on_attach(const proto::Frame& frame) {
  proto::Frame answer;
  proto::LocalAttached& attached = *answer.mutable_local_attached();
  const proto::LocalAttach& asked = frame.local_attach();
  auto reply = [&]() -> Result<local::AttachReply> {
    if (context_.local == nullptr) return Error{ErrorCode::unsupported, "the local fabric is off in the owner"};
    if (!peer_host_.same_host(context_.identity.host))
      return Error{ErrorCode::unsupported, "not on the same host and in the same pid namespace"};
    return context_.local->attach(*this, peer_host_, challenge_,
                                  {asked.proof_address(), asked.challenge(), asked.slots_fd()});
  }();
  if (reply) {
    attached.set_proof_address(reply->proof_address);
    attached.set_words_fd(reply->words_fd);
    attached.set_session_word(reply->session_word);
    attached.set_session_generation(reply->session_generation);
  } else {
    attached.set_code(static_cast<uint32_t>(reply.error().code));
    attached.set_message(reply.error().to_string());
  }
  frames_.send(answer);
}

void OwnerSession::on_notify(const proto::Frame& frame) {
  const proto::Notify& notify = frame.notify();
  const Status status = context_.deliver({engine_id_, {notify.name(), notify.payload()}});
  proto::Frame answer;
  answer.mutable_notify_ack()->set_number(notify.number());
  if (!status.ok()) {
    answer.mutable_notify_ack()->set_code(static_cast<uint32_t>(status.error().code));
    answer.mutable_notify_ack()->set_message(status.error().message);
  }
  frames_.send(answer);
}

void OwnerSession::on_fence(const proto::Frame& frame) {
  context_.lanes.close_lane(*this, frame.fence().lane_id());
  fenced_lanes_.insert(frame.fence().lane_id());
  if (fenced_lanes_.size() > kMaxFencedLanes) fenced_lanes_.erase(fenced_lanes_.begin());
  proto::Frame answer;
  *answer.mutable_fenced() = frame.fence();
  frames_.send(answer);
}

void OwnerSession::adopt_lane(std::unique_ptr<Stream> stream, const LanePreface& lane) {
  const auto token = std::find_if(tokens_.begin(), tokens_.end(),
                                  [&](const std::string& known) { return equal_secrets(known, lane.token); });
  if (over_ || token == tokens_.end()) return;  // closes it
  tokens_.erase(token);
  if (fenced_lanes_.contains(lane.lane_id) || context_.lanes.lanes_of(*this) >= context_.limits.lanes) return;
  context_.lanes.adopt(*this, std::move(stream), lane.lane_id);
}

}  // namespace kvferry
