#include "engine/run/core.h"

#include <fmt/format.h>

#include <algorithm>

#include "common/text.h"
#include "engine/io/kernel_tls.h"
#include "engine/session/messages.h"

namespace kvferry {
namespace {

// Writers of another process, and threads in the middle of a system call, have no descriptor to wait on.
constexpr Duration kQuietPoll = std::chrono::microseconds(100);
constexpr Duration kQuarantinePoll = std::chrono::milliseconds(10);
// How long a peer that reaches our memory by itself may take to say that it is through with a region.
constexpr Duration kFencePatience = std::chrono::seconds(1);

Identity make_identity(const EngineConfig& config, Random& random, const HostIdentity& host) {
  Identity identity;
  identity.engine_id = config.engine_id.empty() ? "engine-" + to_hex(random.token(4)) : config.engine_id;
  identity.incarnation = random.next();
  identity.auth = config.auth.mode;
  identity.host = host;
  identity.features = known_features();
  identity.heartbeat = config.heartbeat;
  identity.patience = config.heartbeat * config.missed_heartbeats;
  return identity;
}

bool is_misdeed(const Error& why) {
  return why.code == ErrorCode::protocol || why.code == ErrorCode::resource_exhausted ||
         why.code == ErrorCode::permission_denied;
}

// What each may hold in any case is what a read takes: whoever keeps up never holds more for long.
std::shared_ptr<FrameRoom> frame_room(size_t bytes, size_t sessions) {
  constexpr size_t kLeast = size_t{32} << 10;
  return std::make_shared<FrameRoom>(FrameRoom{bytes, std::max(kLeast, bytes / std::max<size_t>(sessions, 1)), 0});
}

std::vector<FabricGuests> guests_of(const std::vector<plugin::Node*>& nodes) {
  std::vector<FabricGuests> out;
  for (plugin::Node* node : nodes) out.push_back({node->fabric(), &node->guests()});
  return out;
}

bool has(const std::vector<std::string>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

Status NotificationQueue::push(ReceivedNotification received) {
  const size_t bytes = received.from.size() + received.notification.name.size() + received.notification.payload.size();
  const std::lock_guard lock(mutex_);
  if (queue_.size() >= max_count_ || bytes_ + bytes > max_bytes_)
    return Error{ErrorCode::resource_exhausted, "the receiver does not take its notifications: the queue is full"};
  bytes_ += bytes;
  queue_.push_back(std::move(received));
  return {};
}

std::vector<ReceivedNotification> NotificationQueue::take() {
  const std::lock_guard lock(mutex_);
  std::vector<ReceivedNotification> taken(std::make_move_iterator(queue_.begin()),
                                          std::make_move_iterator(queue_.end()));
  queue_.clear();
  bytes_ = 0;
  return taken;
}

EngineCore::EngineCore(Parts parts, const EngineConfig& config)
    : parts_(std::move(parts)),
      config_(config),
      identity_(make_identity(config, parts_.random, parts_.host)),
      staging_(parts_.loop, config.staging_bytes),
      lanes_(parts_.loop, parts_.registry, staging_),
      local_owner_(parts_.words),
      transfer_metrics_(TransferMetrics::of(parts_.metrics)),
      strangers_(parts_.metrics.counter("kvferry_strangers_total", "Connections refused before they became a session")),
      complaints_(parts_.loop, parts_.logger, parts_.metrics),
      sessions_gauge_(parts_.metrics.gauge("kvferry_sessions", "Sessions that peers hold with this engine")),
      came_room_(frame_room(config.max_session_bytes, config.max_sessions)),
      dialled_room_(frame_room(config.max_session_bytes, config.max_peers)),
      quiet_poll_(parts_.loop) {
  for (const plugin::Node* node : parts_.nodes)
    identity_.fabrics.push_back({node->fabric(), node->address(), node->client()});
  Acceptor::Options options;
  options.plain_refusal = plain_refusal(config.auth.mode);
  options.max_connections = config.max_connections;
  acceptor_ = std::make_unique<Acceptor>(
      parts_.loop, std::move(options), complaints_, strangers_,
      [this](std::unique_ptr<Stream> stream) { session_came(std::move(stream)); },
      [this](std::unique_ptr<Stream> stream, const LanePreface& lane) { lane_came(std::move(stream), lane); });
}

EngineCore::~EngineCore() {
  shut_down();
}

Status EngineCore::listen() {
  KVF_ASSIGN_OR_RETURN(const Address wanted, parse_address(config_.listen, false));
  KVF_RETURN_IF_ERROR(acceptor_->listen(parts_.network, wanted));
  address_ = identity_.address = acceptor_->address();
  parts_.metrics
      .gauge("kvferry_auth_mode", "1 for the engine's auth mode", {{"mode", std::string(to_string(config_.auth.mode))}})
      .set(1);
  if (config_.auth.mode == AuthMode::open && !address_.is_loopback())
    parts_.logger->info("auth mode open on {}: whoever reaches that port may use what this engine registers",
                        address_.to_string());
  if (config_.loopback)
    config_.loopback->add(identity_.engine_id, identity_.incarnation, parts_.registry, parts_.words);
  return {};
}

void EngineCore::shut_down() {
  const Error why{ErrorCode::cancelled, "the engine is shutting down"};
  acceptor_.reset();
  if (config_.loopback) config_.loopback->remove(identity_.engine_id, identity_.incarnation);
  for (const auto& peer : peers_) peer->shut_down(why);
  std::vector<OwnerSession*> sessions;
  for (const auto& [id, session] : sessions_) sessions.push_back(session.get());
  for (OwnerSession* session : sessions) session->end(why);
  quiet_poll_.cancel();
}

// ---- peers that use this engine

// `max_sessions` bounds what all of them cost, `max_sessions_per_host` what one host can take from the others (I6, I7).
Status EngineCore::admit_session(const std::string& host) const {
  if (sessions_.size() >= config_.max_sessions)
    return Error{ErrorCode::resource_exhausted, fmt::format("max_sessions ({}) are open", config_.max_sessions)};
  const auto found = sessions_by_host_.find(host);
  if (found != sessions_by_host_.end() && found->second >= config_.max_sessions_per_host)
    return Error{ErrorCode::resource_exhausted,
                 fmt::format("max_sessions_per_host ({}) are open with {}", config_.max_sessions_per_host, host)};
  return {};
}

void EngineCore::session_came(std::unique_ptr<Stream> stream) {
  const std::string address = stream->peer_address();
  const std::string host = network_of(address);
  if (Status status = admit_session(host); !status.ok()) {
    strangers_.add();
    return complaints_.note(address, status.error());
  }
  OwnerSession::Context context{
      parts_.loop,
      identity_,
      parts_.registry,
      lanes_,
      parts_.copier != nullptr && has(config_.fabrics, "local") ? &local_owner_ : nullptr,
      guests_of(parts_.nodes),
      desk_,
      parts_.random,
      OwnerSession::Limits{},
      Frames::Limits{.room = came_room_},
      [this](ReceivedNotification received) { return parts_.notifications.push(std::move(received)); },
      [this](OwnerSession& session, const Error& why) { session_ended(session, why); },
      [this](const OwnerSession& session, uint64_t old) { replace_session(session, old); }};
  auto session = std::make_unique<OwnerSession>(std::move(context), std::move(stream));
  const uint64_t id = session->session_id();
  sessions_.emplace(id, std::move(session));
  ++sessions_by_host_[host];
  sessions_gauge_.set(static_cast<int64_t>(sessions_.size()));
}

void EngineCore::lane_came(std::unique_ptr<Stream> stream, const LanePreface& lane) {
  const auto found = sessions_.find(lane.session_id);
  if (found != sessions_.end()) found->second->adopt_lane(std::move(stream), lane);
}

void EngineCore::session_ended(OwnerSession& session, const Error& why) {
  parts_.logger->debug("session of peer \"{}\" ended: {}", session.engine_id(), why.to_string());
  auto entry = sessions_.extract(session.session_id());
  if (entry.empty()) return;
  const std::string address = session.peer_address();
  const auto host = sessions_by_host_.find(network_of(address));
  if (host != sessions_by_host_.end() && --host->second == 0) sessions_by_host_.erase(host);
  if (is_misdeed(why)) complaints_.note(fmt::format("\"{}\" ({})", session.engine_id(), address), why);
  sessions_gauge_.set(static_cast<int64_t>(sessions_.size()));
  // Called from within the session: destroyed in a later turn.
  parts_.loop.defer([keep = std::shared_ptr<OwnerSession>(std::move(entry.mapped()))] {});
}

void EngineCore::replace_session(const OwnerSession& session, uint64_t old) {
  const auto found = sessions_.find(old);
  if (found == sessions_.end() || found->second.get() == &session) return;
  OwnerSession& former = *found->second;
  if (former.engine_id() != session.engine_id() || former.incarnation() != session.incarnation()) return;
  former.end(Error{ErrorCode::peer_lost, "the peer has dialled again"});
}

void EngineCore::announce_regions() {
  std::vector<OwnerSession*> sessions;
  for (const auto& [id, session] : sessions_) sessions.push_back(session.get());
  for (OwnerSession* session : sessions) session->send_regions();
}

// ---- peers that this engine uses

Result<EngineCore::PeerIndex> EngineCore::find_or_add_peer(const Address& address) {
  const auto found = peers_by_address_.find(address);
  if (found != peers_by_address_.end()) return found->second;
  if (peers_.size() >= config_.max_peers)
    return Error{ErrorCode::resource_exhausted, fmt::format("max_peers ({}) are known", config_.max_peers)};
  Peer::Context context{parts_.loop,
                        parts_.network,
                        identity_,
                        parts_.random,
                        staging_,
                        has(config_.fabrics, "local") ? parts_.copier : nullptr,
                        parts_.clock,
                        has(config_.fabrics, "tcp"),
                        parts_.nodes,
                        tcp::PathOptions{},
                        config_.connect_timeout,
                        config_.max_regions,
                        dialled_room_,
                        parts_.post,
                        has(config_.fabrics, "loopback") ? config_.loopback : nullptr,
                        parts_.hub,
                        transfer_metrics_,
                        parts_.logger,
                        complaints_};
  context.tcp_options.bulk_lanes = static_cast<size_t>(config_.bulk_lanes);
  const PeerIndex index = peers_.size();
  peers_.push_back(std::make_unique<Peer>(std::move(context), address));
  peers_by_address_.emplace(address, index);
  return index;
}

void EngineCore::connect(PeerIndex peer, std::function<void(Status)> connected) {
  peers_[peer]->connect(std::move(connected));
}

// ---- unregister

void EngineCore::unregister(RegionId id, TimePoint deadline, std::function<void(Status)> quiet, Task quiet_again) {
  auto region = parts_.registry.begin_close(id);
  if (!region) return quiet(region.error());
  announce_regions();
  for (const auto& peer : peers_) peer->cancel_users_of(**region);
  if (end_users_) end_users_(**region);
  lanes_.fence_region(**region);
  const TimePoint now = parts_.loop.now();
  const TimePoint late =
      now + std::min<Duration>(kFencePatience, std::max<Duration>((deadline - now) / 2, Duration(0)));
  closing_.push_back(
      Closing{std::move(*region), deadline, std::move(quiet), std::move(quiet_again), parts_.registry.version(), late});
  check_closing();
}

void EngineCore::fence_late(const Closing& closing) {
  if (closing.quiet && parts_.loop.now() < closing.fence_late) return;
  for (plugin::Node* node : parts_.nodes) node->guests().fence_late(closing.version);
}

bool EngineCore::is_quiet(const Closing& closing) {
  fence_late(closing);
  for (plugin::Node* node : parts_.nodes)
    if (!node->guests().quiet_since(closing.version)) return false;
  return closing.region->pins.load(std::memory_order_seq_cst) == 0 &&
         !local_owner_.has_writers(closing.region->info.word);
}

void EngineCore::check_closing() {
  bool impatient = false;
  for (auto closing = closing_.begin(); closing != closing_.end();) {
    if (is_quiet(*closing)) {
      parts_.registry.forget(*closing->region);
      const Closing ended = std::move(*closing);
      closing = closing_.erase(closing);
      ended.quiet ? ended.quiet({}) : ended.quiet_again();
      continue;
    }
    if (closing->quiet && parts_.loop.now() >= closing->deadline) {
      const bool in_use_here = closing->region->pins.load() > 0;
      std::exchange(closing->quiet, nullptr)(
          Error{ErrorCode::not_quiet, fmt::format("region {} is quarantined: {}", closing->region->info.id,
                                                  in_use_here ? "this engine still reads or writes it, perhaps a parcel"
                                                              : "a stopped process may still write to it")});
    }
    impatient |= static_cast<bool>(closing->quiet);
    ++closing;
  }
  if (closing_.empty()) return;
  quiet_poll_.arm(parts_.loop.now() + (impatient ? kQuietPoll : kQuarantinePoll), [this] { check_closing(); });
}

std::string EngineCore::describe_fabrics() const {
  std::string out = "[";
  for (size_t i = 0; i < config_.fabrics.size(); ++i) out += (i ? "," : "") + json_quote(config_.fabrics[i]);
  out += "],\"plugins\":{";
  for (const plugin::Node* node : parts_.nodes)
    out += (node == parts_.nodes.front() ? "" : ",") + json_quote(node->fabric()) + ":" + json_quote(node->describe());
  return out + (parts_.rdma.empty() ? "}" : "},\"rdma\":" + parts_.rdma);
}

std::string EngineCore::describe() const {
  std::string out = fmt::format(R"({{"engine_id":{},"incarnation":"{:016x}","address":{},"auth":"{}","strict":{},)"
                                R"("kernel_tls":{},"regions":{})",
                                json_quote(identity_.engine_id), identity_.incarnation,
                                json_quote(address_.to_string()), to_string(config_.auth.mode), config_.strict,
                                json_quote(kernel_tls(config_.auth)), parts_.registry.snapshot().size());
  out += fmt::format(R"(,"memory":{})", parts_.registry.describe_kinds());
  out += fmt::format(R"(,"sessions":{},"quarantined":[)", sessions_.size());
  for (const Closing& closing : closing_)
    out += fmt::format(R"({}{{"region":{},"base":"0x{:x}","length":{}}})", &closing == &closing_.front() ? "" : ",",
                       closing.region->info.id, closing.region->info.base, closing.region->info.length);
  out += "],\"fabrics\":" + describe_fabrics() + ",\"peers\":[";
  for (size_t i = 0; i < peers_.size(); ++i) out += (i ? "," : "") + peers_[i]->describe();
  return out + "]}";
}

}  // namespace kvferry
