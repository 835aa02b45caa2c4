#include "engine/run/peer.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvferry {
namespace {

constexpr Duration kFirstBackoff = std::chrono::milliseconds(20);
constexpr Duration kLongestBackoff = std::chrono::seconds(2);
// How long a cancelled write waits to hear that the far side is quiet, before it says `unknown`.
constexpr Duration kFencePatience = std::chrono::seconds(1);
constexpr size_t kFetchLanes = 2;

}  // namespace

Peer::Peer(Context context, Address address)
    : context_(std::move(context)), address_(std::move(address)), redial_(context_.loop) {}

Peer::~Peer() {
  shut_down(Error{ErrorCode::cancelled, "the engine is shutting down"});
}

void Peer::shut_down(const Error& why) {
  if (session_) session_->end(why);
  fail_connecting(why);
  redial_.cancel();
}

// ---- the session

void Peer::connect(std::function<void(Status)> connected) {
  if (session_ && session_->ready()) return connected({});
  connecting_.push_back(std::move(connected));
  ensure_session();
}

void Peer::sync(std::function<void(Status)> synced) {
  if (!session_ || !session_->ready()) return connect(std::move(synced));
  const auto entry = syncing_.insert(syncing_.end(), std::move(synced));
  session_->sync([this, entry] {
    const auto call = std::move(*entry);
    syncing_.erase(entry);
    call({});
  });
}

void Peer::ensure_session() {
  if (session_ || redial_.armed()) return;
  if (context_.loop.now() >= next_dial_) return dial();
  redial_.arm(next_dial_, [this] { dial(); });
}

void Peer::dial() {
  auto stream = context_.network.dial(address_);
  if (!stream) {
    back_off();  // before anybody hears of it, and asks again
    return fail_connecting(stream.error());
  }
  InitiatorSession::Context session{context_.loop,
                                    context_.network,
                                    context_.identity,
                                    context_.random,
                                    context_.copier != nullptr,
                                    Frames::Limits{.room = context_.frame_room},
                                    context_.max_regions,
                                    context_.connect_patience,
                                    last_session_id_,
                                    [this] { on_ready(); },
                                    [this] { on_regions_changed(); },
                                    [this](const proto::Frame& frame) {
                                      if (parcels_.answer) parcels_.answer(frame);
                                    },
                                    [this] { return plugin_path_ == nullptr || plugin_path_->close(); },
                                    [this](const Error& why) { on_session_ended(why); }};
  session_ = std::make_unique<InitiatorSession>(std::move(session), std::move(*stream), address_, std::string());
}

void Peer::publish_view() {
  PeerView::Snapshot snapshot;
  if (session_ && session_->ready())
    snapshot = {session_->link(), session_->regions(), session_->peer().engine_id, session_->peer().incarnation, true};
  view_->set(std::move(snapshot));
}

void Peer::on_ready() {
  backoff_ = Duration(0);
  last_error_.clear();
  last_engine_id_ = session_->peer().engine_id;
  last_session_id_ = session_->id();
  choose_one_sided();
  if (context_.use_tcp) {
    tcp_path_ = std::make_unique<tcp::TcpPath>(context_.loop, *session_, context_.staging, context_.tcp_options);
    fetch_path_ = std::make_unique<tcp::FetchPath>(context_.loop, *session_, kFetchLanes);
  }
  on_regions_changed();
  // What one of them does may end the session for the next.
  for (auto& connected : std::exchange(connecting_, {}))
    connected(session() != nullptr ? Status() : Status(Error{ErrorCode::peer_lost, last_error_}));
  std::vector<TaskPtr> waiting(tasks_.begin(), tasks_.end());
  const auto in_order = [](const TaskPtr& a, const TaskPtr& b) { return a->id < b->id; };
  std::sort(waiting.begin(), waiting.end(), in_order);
  for (const TaskPtr& task : waiting) task->exposed = false;  // this session's hello has ended the one before
  for (const TaskPtr& task : waiting)
    if (task->phase == TransferPhase::waiting && session_) begin(task);
}

// on_ready() has set it to nothing.
void Peer::back_off() {
  backoff_ = std::clamp(backoff_ * 2, kFirstBackoff, kLongestBackoff);
  next_dial_ = context_.loop.now() + backoff_ / 2 +
               Duration(static_cast<int64_t>(context_.random.below(static_cast<uint64_t>(backoff_.count() / 2 + 1))));
}

// I5: what depended on the session ends with it; the next use dials again and may find another incarnation.
void Peer::on_session_ended(const Error& why) {
  const bool was_ready = view_->get().ready;
  last_error_ = why.to_string();
  context_.logger->debug("session with {} ended: {}", address_.to_string(), last_error_);
  if (session_ && !session_->peer().engine_id.empty()) last_engine_id_ = session_->peer().engine_id;
  if (why.code == ErrorCode::protocol || why.code == ErrorCode::resource_exhausted)
    context_.complaints.note(fmt::format("\"{}\" ({})", last_engine_id_, address_.to_string()), why);
  std::shared_ptr<InitiatorSession> session = std::move(session_);
  publish_view();
  back_off();
  for (auto& synced : std::exchange(syncing_, {})) synced(why);  // the session has forgotten them
  fail_connecting(why, was_ready && session->ended_by_peer() && why.code == ErrorCode::peer_lost);
  if (parcels_.session_ended) parcels_.session_ended(why);
  std::shared_ptr<tcp::TcpPath> tcp_path = std::move(tcp_path_);
  std::shared_ptr<OneSidedPath> one_sided_path = std::move(one_sided_path_);
  plugin_path_ = nullptr;
  std::shared_ptr<tcp::FetchPath> fetch_path = std::move(fetch_path_);
  if (fetch_path) fetch_path->fail_all(why);
  // Called from within the session, perhaps by one of its lanes: destroyed in a later turn, the paths first.
  context_.loop.defer([session, tcp_path, one_sided_path, fetch_path]() mutable {
    tcp_path.reset();
    fetch_path.reset();
    one_sided_path.reset();
  });
  if (!tasks_.empty()) ensure_session();
}

// I5: a peer may have ended the session before a transfer began on it, which shows here only afterwards. A transfer of
// which nothing is done moves to the next session instead of failing, once. The next hello names the session that it
// replaces, so that nothing of a write sent on this one can land behind what is written on that one (I4).
bool Peer::await_next_session(const TaskPtr& task) {
  if (task->redialled || !task->job || task->job->bytes_done.load() != 0) return false;
  if (task->phase != TransferPhase::waiting && task->phase != TransferPhase::moving) return false;
  if (task->phase == TransferPhase::moving) {
    task->exposed = !task->path->cancel(task->job, [] {});
    if (task->job->loose) return false;  // something late may land beside what would be moved now
    task->path = nullptr;
    task->advance(TransferEvent::session_lost);
  }
  task->redialled = true;
  task->synced = false;
  return true;
}

void Peer::fail_connecting(const Error& why, bool session_ended_by_peer) {
  for (auto& connected : std::exchange(connecting_, {})) connected(why);
  const std::vector<TaskPtr> all(tasks_.begin(), tasks_.end());
  for (const TaskPtr& task : all) {
    if (session_ended_by_peer && await_next_session(task)) continue;
    if (task->phase == TransferPhase::fencing)
      on_deadline(task);  // nobody is left to confirm the fence
    else
      give_up(task, why, false);
  }
}

// ---- transfers

void Peer::submit(const TaskPtr& task) {
  tasks_.insert(task);
  if (task->awaited != 0)
    task->watch = context_.staging.when(*task->job->local_ops, task->awaited,
                                        [this, weak = std::weak_ptr(task)](const Status& status) {
                                          if (const TaskPtr held = weak.lock()) on_event(held, status);
                                        });
  task->timer = std::make_unique<Timer>(context_.loop);
  task->timer->arm(task->deadline, [this, task] { on_deadline(task); });
  if (session_ && session_->ready()) return begin(task);
  ensure_session();
}

// What the transfer moves is written, or free to be overwritten, from here on.
void Peer::on_event(const TaskPtr& task, const Status& status) {
  if (task->phase != TransferPhase::waiting) return;
  task->awaited = 0;
  if (!status.ok()) return give_up(task, status.error(), false);
  if (session_ && session_->ready()) begin(task);
}

void Peer::begin(const TaskPtr& task) {
  if (task->awaited != 0) return;  // on_event() comes back here
  if (task->job) return begin_move(task);
  task->phase = TransferPhase::notifying;
  begin_notify(task);
}

void Peer::begin_move(const TaskPtr& task) {
  if (Status status = check_incarnation(*task, session_->peer().incarnation); !status.ok())
    return give_up(task, status.error(), false);
  if (Status status = check_against(session_->regions(), *task->job); !status.ok()) {
    if (status.error().code != ErrorCode::not_found || task->synced) return give_up(task, status.error(), false);
    // The region may be so new that its announcement is still on the way.
    task->synced = true;
    return session_->sync([this, task] {
      if (task->phase == TransferPhase::waiting && session_) begin_move(task);
    });
  }
  auto path = choose_path(*task->job);
  if (!path) return give_up(task, path.error(), false);
  task->advance(TransferEvent::session_ready);
  start_on(task, **path);
}

void Peer::start_on(const TaskPtr& task, Path& path) {
  task->path = &path;
  const std::weak_ptr<TransferTask> weak = task;  // tasks_ holds it; a strong one here would be a cycle
  task->job->done = [this, weak](Status status) {
    if (const TaskPtr held = weak.lock()) on_moved(held, std::move(status));
  };
  task->path->start(task->job);
}

void Peer::on_moved(const TaskPtr& task, Status status) {
  if (task->phase != TransferPhase::moving) return;
  // What copies without the peer may learn first that it has ended the session.
  if (!status.ok() && status.error().code == ErrorCode::peer_lost && session_ && task->path == one_sided_path_.get() &&
      task->path != plugin_path_)
    return session_->lose(status.error());
  const bool untouched = task->job->bytes_done.load() == 0;
  if (!status.ok() && status.error().code == ErrorCode::unavailable && untouched && task->path == plugin_path_ &&
      tcp_path_ && plugin_path_ != nullptr)
    return start_on(task, *tcp_path_);  // the fabric's connection could not be made
  if (!status.ok()) return give_up(task, status.error(), true);
  if (!task->notification) {
    task->advance(TransferEvent::moved_unannounced);
    return finish(task, {}, RemoteQuiet::quiet);
  }
  task->advance(TransferEvent::moved);
  begin_notify(task);
}

// I8: the data was acknowledged as visible before this frame is sent.
void Peer::begin_notify(const TaskPtr& task) {
  if (!session_ || !session_->ready()) return give_up(task, Error{ErrorCode::peer_lost, "the session is over"}, false);
  session_->notify(*task->notification, [this, task](Status status) {
    if (!task->advance(TransferEvent::acknowledged)) return;
    finish(task, status.ok() ? Status() : Status(explain(*task, status.error())), RemoteQuiet::quiet);
  });
}

void Peer::cancel(const TaskPtr& task, const Error& why) {
  if (tasks_.contains(task)) give_up(task, why, true);
}

void Peer::cancel_users_of(const RegionState& region) {
  const std::vector<TaskPtr> all(tasks_.begin(), tasks_.end());
  for (const TaskPtr& task : all) {
    if (!task->job) continue;
    const auto& pins = task->job->pins;
    if (std::any_of(pins.begin(), pins.end(), [&](const RegionPin& pin) { return pin.get() == &region; }))
      give_up(task, Error{ErrorCode::cancelled, "its local region was unregistered"}, true);
  }
}

void Peer::on_deadline(const TaskPtr& task) {
  if (task->phase == TransferPhase::fencing) {
    task->advance(TransferEvent::fenced);
    return finish(task, std::move(task->verdict), RemoteQuiet::unknown);
  }
  Error why{ErrorCode::deadline_exceeded, "deadline exceeded"};
  if (session_ && session_->silence() > context_.identity.heartbeat * 3 / 2)
    why.message = fmt::format("no heartbeat for {:.1f} s", seconds(session_->silence()));
  else if (task->phase == TransferPhase::waiting && !last_error_.empty())
    why.message += "; last error: " + last_error_;
  give_up(task, why, false);
}

void Peer::give_up(const TaskPtr& task, const Error& why, bool wait_for_far_side) {
  if (task->phase == TransferPhase::ended || task->phase == TransferPhase::fencing) return;
  bool far_quiet = !task->exposed;
  wait_for_far_side &= !task->exposed;  // there is no session to ask
  if (task->phase == TransferPhase::moving) {
    far_quiet = task->path->cancel(task->job, [this, task] {
      if (!task->advance(TransferEvent::fenced)) return;
      finish(task, std::move(task->verdict), RemoteQuiet::quiet);
    });
    // To ask the far side may have ended the session, and the transfer with it, or made it wait for the next.
    if (task->phase == TransferPhase::ended) return;
    wait_for_far_side &= task->phase == TransferPhase::moving && session_ != nullptr;
  }
  Error explained = explain(*task, why);
  if (task->job) task->job->pins.clear();  // the local side is quiet
  if (far_quiet || !wait_for_far_side) {
    task->advance(TransferEvent::give_up);
    return finish(task, std::move(explained), far_quiet ? RemoteQuiet::quiet : RemoteQuiet::unknown);
  }
  task->advance(TransferEvent::give_up_write);
  task->verdict = std::move(explained);
  task->timer->arm(std::min(task->deadline, context_.loop.now() + kFencePatience), [this, task] { on_deadline(task); });
}

Error Peer::explain(const TransferTask& task, const Error& why) const {
  return explain_failure(task, session_ ? session_->peer().engine_id : last_engine_id_, address_.to_string(),
                         context_.loop.now(), task.path != nullptr ? task.path->fabric() : nullptr, why);
}

void Peer::finish(const TaskPtr& task, Status status, RemoteQuiet remote) {
  task->timer.reset();
  task->watch.reset();
  tasks_.erase(task);
  Outcome outcome;
  outcome.status = std::move(status);
  outcome.remote = remote;
  if (task->job) {
    task->job->pins.clear();
    outcome.bytes_done = task->job->bytes_done.load();
    outcome.spans_done = task->job->spans_done.load();
  }
  if (task->path != nullptr) outcome.fabric = task->path->fabric();
  context_.metrics.record(outcome, context_.loop.now() - task->submitted);
  if (!task->completion->finish(std::move(outcome))) return;
  context_.hub.ended(task->id);
  auto callbacks = task->completion->take_callbacks();
  if (callbacks.empty()) return;
  context_.loop.defer([completion = task->completion, callbacks = std::move(callbacks)] {
    for (const auto& callback : callbacks) callback(completion->outcome());
  });
}

}  // namespace kvferry
