#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <new>
#include <thread>

#include "engine/engine_state.h"
#include "engine/session/messages.h"

namespace kvferry {

using detail::EngineState;

namespace {

Status check_request(const EngineConfig& config, const std::vector<Pair>& pairs) {
  if (pairs.empty()) return Error{ErrorCode::invalid_argument, "a transfer needs at least one pair"};
  if (pairs.size() > config.max_pairs)
    return Error{ErrorCode::resource_exhausted,
                 fmt::format("{} pairs are over max_pairs ({})", pairs.size(), config.max_pairs)};
  for (const Pair& pair : pairs)
    if (pair.length == 0) return Error{ErrorCode::invalid_argument, "a pair of length zero"};
  return {};
}

// Pins the regions that hold the local spans; they must all be of one memory kind.
Status pin_local_spans(const Registry& registry, Job& job) {
  for (const Pair& pair : job.pairs) {
    if (!job.pins.empty()) {
      const RegionInfo& last = job.pins.back()->info;
      const uint64_t offset = reinterpret_cast<uint64_t>(pair.local) - last.base;
      if (offset < last.length && pair.length <= last.length - offset) continue;
    }
    KVF_ASSIGN_OR_RETURN(RegionPin pin, registry.pin_local(pair.local, pair.length));
    if (job.local_ops != nullptr && job.local_ops != pin->ops)
      return Error{ErrorCode::unsupported, "the local spans of one transfer are of several memory kinds"};
    job.local_ops = pin->ops;
    job.pins.push_back(std::move(pin));
  }
  return {};
}

Result<std::shared_ptr<TransferTask>> make_task(EngineState& engine, const std::shared_ptr<detail::PeerHandle>& peer,
                                                Duration timeout, std::optional<Notification> notify) {
  KVF_RETURN_IF_ERROR(engine.usable());
  if (!peer) return Error{ErrorCode::invalid_argument, "no peer"};
  if (peer->engine.get() != &engine) return Error{ErrorCode::invalid_argument, "the peer belongs to another engine"};
  if (notify && notify->name.size() + notify->payload.size() > kMaxNotificationBytes)
    return Error{ErrorCode::invalid_argument,
                 fmt::format("a notification may have {} bytes at most", kMaxNotificationBytes)};
  if (engine.in_flight.fetch_add(1, std::memory_order_relaxed) >= engine.config.max_transfers) {
    engine.in_flight.fetch_sub(1, std::memory_order_relaxed);
    return Error{ErrorCode::resource_exhausted,
                 fmt::format("max_transfers ({}) are in flight", engine.config.max_transfers)};
  }
  if (engine.hub->untaken() >= engine.config.max_transfers) {
    engine.in_flight.fetch_sub(1, std::memory_order_relaxed);
    return Error{ErrorCode::resource_exhausted,
                 fmt::format("{} ended transfers were not taken from the completion queue", engine.hub->untaken())};
  }
  auto task = std::make_shared<TransferTask>();
  task->id = engine.next_transfer.fetch_add(1, std::memory_order_relaxed);
  task->submitted = engine.clock->now();
  task->deadline = after(task->submitted, timeout > Duration(0) ? timeout : engine.config.default_timeout);
  task->notification = std::move(notify);
  return task;
}

// Ends a transfer that never saw the loop.
void finish_directly(EngineState& engine, const std::string& address, const std::string& peer_id, TransferTask& task,
                     Status status) {
  Outcome outcome;
  outcome.fabric = "local";
  outcome.bytes_done = task.job->bytes_done.load();
  outcome.spans_done = task.job->spans_done.load();
  const TimePoint now = engine.clock->now();
  if (!status.ok()) outcome.status = explain_failure(task, peer_id, address, now, "local", status.error());
  task.job->pins.clear();
  engine.transfer_metrics->record(outcome, now - task.submitted);
  task.completion->finish(std::move(outcome));
  engine.hub->ended(task.id);
}

void submit_to_loop(EngineState& engine, size_t peer, const std::shared_ptr<TransferTask>& task, bool sync) {
  engine.driver->post([&engine, peer, task] { engine.core->submit(peer, task); }, sync);
}

// Same host, no notification: copied by the calling thread (helped by the copy threads when it is large), behind the
// owner's gate and without the loop. False: the loop has to take it.
bool copy_directly(EngineState& engine, const detail::PeerHandle& peer, const std::shared_ptr<TransferTask>& task,
                   bool any_size) {
  if (task->notification || task->awaited != 0 || task->job->local_ops->kind() != MemoryKind::host) return false;
  if (!any_size && task->job->bytes > local::Copier::kInlineBytes) return false;
  const PeerView::Snapshot view = peer.view->get();
  if (!view.link || view.link->closed()) return false;
  if (!check_incarnation(*task, view.incarnation).ok()) return false;
  if (!check_against(view.regions, *task->job).ok()) return false;
  for (const RegionInfo* region : task->job->remote)
    if (region->kind != MemoryKind::host || region->word == kNoWord) return false;
  const bool alone = task->job->bytes <= local::Copier::kInlineBytes;
  bool session_over = false;
  // Perhaps in a copy thread, which still holds the task when its waiter has left.
  const auto done = [&engine, &peer, &session_over, task, alone, id = view.engine_id](Status status) {
    // I5: the owner has ended the session. Nothing has moved, and the loop can dial again.
    if (!status.ok() && status.error().code == ErrorCode::peer_lost && task->job->bytes_done.load() == 0)
      return alone ? void(session_over = true) : submit_to_loop(engine, peer.index, task, true);
    finish_directly(engine, peer.address, id, *task, std::move(status));
  };
  auto copy = std::make_shared<local::Copy>(task->job, view.link, *engine.clock, done);
  if (!alone) engine.copier->enqueue(copy);
  copy->help();
  if (session_over) return false;
  engine.driver->wait(task->completion->flag(), kNever);  // the copy threads' last slices
  return true;
}

}  // namespace

// ---- Engine

Result<std::unique_ptr<Engine>> Engine::create(EngineConfig config) {
  return create(std::move(config), {});
}

Result<std::unique_ptr<Engine>> Engine::create(EngineConfig config, std::vector<std::shared_ptr<MemoryOps>> kinds) {
  KVF_RETURN_IF_ERROR(config.validate());
  // process_vm_readv and RDMA devices reach what is registered, all of it. The word for RDMA stays, to be refused.
  if (config.strict)
    std::erase_if(config.fabrics, [](const std::string& name) { return name != "tcp" && name != kRdma; });
  auto state = std::make_shared<EngineState>();
  EngineState& s = *state;
  s.config = std::move(config);
  if (!s.config.logger) s.config.logger = make_stderr_logger(LogLevel::warning, "kvferry");
  s.transfer_metrics.emplace(TransferMetrics::of(s.metrics));
  KVF_ASSIGN_OR_RETURN(MemoryKinds known, detail::known_kinds(s.config));
  for (auto& kind : kinds) known.add(std::move(kind));
  KVF_ASSIGN_OR_RETURN(s.words, GateWords::create());
  s.registry = std::make_unique<Registry>(std::move(known), *s.words, s.config.max_regions, 1 + (s.random.next() >> 2));
  s.registry->on_unmapped([logger = s.config.logger](const std::string& why) { logger->info("{}", why); });
  KVF_ASSIGN_OR_RETURN(s.loop, EpollLoop::create(s.clock));
  KVF_RETURN_IF_ERROR(s.open_plugins());
  SocketOptions sockets;
  sockets.congestion = s.config.congestion;
  s.network = std::make_unique<SocketNetwork>(*s.loop, sockets);
  if (s.config.auth.mode != AuthMode::open) {
    KVF_ASSIGN_OR_RETURN(s.credentials, Credentials::load(s.config.auth, s.config.logger, s.metrics));
    s.secure_network =
        std::make_unique<SecureNetwork>(*s.loop, *s.network, *s.credentials, plain_refusal(s.config.auth.mode));
  }
  if (std::find(s.config.fabrics.begin(), s.config.fabrics.end(), "local") != s.config.fabrics.end()) {
    const int spare = std::clamp(static_cast<int>(std::thread::hardware_concurrency()) - 1, 1, 3);
    const int threads = s.config.copy_threads >= 0 ? s.config.copy_threads : spare;
    s.copier = std::make_unique<local::Copier>(static_cast<size_t>(std::max(threads, 1)));
  }
  s.notifications = std::make_unique<NotificationQueue>(s.config.max_notifications, s.config.max_notification_bytes);
  EngineState* raw = state.get();
  s.hub = std::make_unique<CompletionHub>([raw] {
    raw->in_flight.fetch_sub(1, std::memory_order_relaxed);
    raw->driver->wake_waiters();
  });
  s.core = std::make_unique<EngineCore>(
      EngineCore::Parts{*s.loop, s.outer_network(), s.random, *s.clock, *s.words, *s.registry, *s.hub, *s.notifications,
                        s.copier.get(), [raw](Task task) { raw->driver->post(std::move(task)); }, s.metrics,
                        s.config.logger, this_host(), s.open_nodes(), s.rdma},
      s.config);
  s.parcel_events = std::make_unique<ParcelEvents>(*s.hub);
  s.parcel_owner = std::make_unique<ParcelOwner>(
      ParcelOwner::Parts{*s.loop, *s.words, *s.registry, s.core->lanes(), s.random, s.metrics, *s.parcel_events},
      s.config.parcels);
  s.parcel_reader = std::make_unique<ParcelReader>(*s.core, *s.loop, *s.registry);
  s.core->set_parcel_desk(s.parcel_owner.get());
  s.core->on_region_closing([raw](const RegionState& region) {
    raw->parcel_reader->end_users_of(region);
    raw->parcel_owner->end_users_of(region);
  });
  KVF_RETURN_IF_ERROR(s.core->listen());
  s.engine_id = s.core->identity().engine_id;
  s.incarnation = s.core->identity().incarnation;
  s.address = s.core->address().to_string();
  KVF_ASSIGN_OR_RETURN(s.driver, LoopDriver::create(*s.loop));
  return std::unique_ptr<Engine>(new Engine(std::move(state)));
}

Engine::~Engine() {
  if (::getpid() != state_->pid) {
    // The parent's threads and sockets are not this process's to end.
    static_cast<void>(new (std::nothrow) std::shared_ptr<EngineState>(state_));
    return;
  }
  std::vector<RegionId> regions;
  for (const RegionInfo& region : state_->registry->snapshot()) regions.push_back(region.id);
  [[maybe_unused]] const auto ignored = state_->unregister(regions, std::chrono::seconds(1));
  state_->call([this](const Task& finished) {
    state_->parcel_owner->shut_down();
    state_->core->shut_down();
    finished();
  });
  state_->stopped.store(true);
  state_->driver->stop();
  // This thread owns the loop now: what was put off to a later turn runs before its parts go.
  const std::atomic<size_t> nothing_posted{0};
  state_->parcel_reader.reset();
  state_->core->set_parcel_desk(nullptr);
  state_->parcel_owner.reset();
  state_->core.reset();
  for (int turn = 0; turn < 3; ++turn) state_->loop->run_once(state_->clock->now(), nothing_posted);
  state_->copier.reset();
  state_->registry->unmap_quarantined();
}

const std::string& Engine::engine_id() const {
  return state_->engine_id;
}

std::string Engine::address() const {
  return state_->address;
}

EngineSelf Engine::self() const {
  EngineSelf self;
  self.engine_id = state_->engine_id;
  self.incarnation = state_->incarnation;
  self.address = state_->address;
  self.fabrics = state_->config.fabrics;
  self.protocol_min = kProtocolMin;
  self.protocol_max = kProtocolMax;
  self.auth = to_string(state_->config.auth.mode);
  self.regions = state_->registry->snapshot();
  return self;
}

Result<PeerRef> Engine::peer(const std::string& text) {
  KVF_RETURN_IF_ERROR(state_->usable());
  KVF_ASSIGN_OR_RETURN(const Address address, parse_address(text, true));
  PeerRef peer;
  peer.handle_ = std::make_shared<detail::PeerHandle>();
  peer.handle_->engine = state_;
  peer.handle_->address = address.to_string();
  Status status;
  state_->call([&](const Task& finished) {
    auto index = state_->core->find_or_add_peer(address);
    if (index) {
      peer.handle_->index = *index;
      peer.handle_->view = state_->core->view_of(*index);
    } else {
      status = std::move(index).error();
    }
    finished();
  });
  if (!status.ok()) return std::move(status).error();
  return peer;
}

// ---- transfers

namespace {

struct Submitted {
  std::shared_ptr<TransferTask> task;
  bool direct = false;  // ended already, in this thread
};

// `sync`: the caller waits for it at once.
Result<Submitted> start_transfer(const std::shared_ptr<EngineState>& engine,
                                 const std::shared_ptr<detail::PeerHandle>& peer, TransferRequest request, bool sync) {
  KVF_RETURN_IF_ERROR(check_request(engine->config, request.pairs));
  KVF_ASSIGN_OR_RETURN(auto task, make_task(*engine, peer, request.timeout, std::move(request.notify)));
  task->incarnation = request.incarnation;
  auto job = std::make_shared<Job>();
  job->operation = request.operation;
  job->pairs = coalesce(request.pairs);
  job->deadline = task->deadline;
  for (const Pair& pair : job->pairs) job->bytes += pair.length;
  Status pinned = pin_local_spans(*engine->registry, *job);
  if (!pinned.ok() && job->pairs.size() < request.pairs.size()) {
    // Neighbours may be of regions that touch, which are two for whoever moves them.
    job->pairs.assign(request.pairs.begin(), request.pairs.end());
    job->pins.clear();
    pinned = pin_local_spans(*engine->registry, *job);
  }
  if (!pinned.ok()) {
    engine->in_flight.fetch_sub(1, std::memory_order_relaxed);
    return std::move(pinned).error();
  }
  task->job = std::move(job);
  if (request.event != 0) {
    const auto happened = task->job->local_ops->event_done(request.event);
    if (!happened) {
      engine->in_flight.fetch_sub(1, std::memory_order_relaxed);
      return happened.error();
    }
    task->awaited = *happened ? 0 : request.event;
  }
  if (copy_directly(*engine, *peer, task, sync)) return Submitted{std::move(task), true};
  submit_to_loop(*engine, peer->index, task, sync);
  return Submitted{std::move(task), false};
}

Result<std::shared_ptr<TransferTask>> start_notification(EngineState& engine,
                                                         const std::shared_ptr<detail::PeerHandle>& peer,
                                                         Duration timeout, Notification notification, bool sync) {
  KVF_ASSIGN_OR_RETURN(auto task, make_task(engine, peer, timeout, std::move(notification)));
  submit_to_loop(engine, peer->index, task, sync);
  return task;
}

Status may_wait(const EngineState& engine) {
  if (!engine.driver->owned_here()) return {};
  return Error{ErrorCode::invalid_argument,
               "a call that waits would block the engine's loop: use submit() or notify() in callbacks"};
}

}  // namespace

Result<Transfer> Engine::submit(TransferRequest request) {
  const std::shared_ptr<detail::PeerHandle> peer = request.peer.handle_;
  KVF_ASSIGN_OR_RETURN(Submitted submitted, start_transfer(state_, peer, std::move(request), false));
  Transfer transfer;
  transfer.handle_ =
      std::make_shared<detail::TransferHandle>(detail::TransferHandle{state_, peer, std::move(submitted.task)});
  return transfer;
}

Outcome Engine::transfer(TransferRequest request) {
  const std::shared_ptr<detail::PeerHandle> peer = request.peer.handle_;
  Outcome refused;
  refused.status = may_wait(*state_);
  if (!refused.status.ok()) return refused;
  auto submitted = start_transfer(state_, peer, std::move(request), true);
  if (!submitted) {
    refused.status = std::move(submitted).error();
    return refused;
  }
  const Completion& completion = *submitted->task->completion;
  if (!submitted->direct) state_->driver->wait(completion.flag(), kNever);
  return completion.outcome();
}

Result<Transfer> Engine::notify(const PeerRef& peer, Notification notification, Duration timeout) {
  KVF_ASSIGN_OR_RETURN(auto task, start_notification(*state_, peer.handle_, timeout, std::move(notification), false));
  Transfer transfer;
  transfer.handle_ =
      std::make_shared<detail::TransferHandle>(detail::TransferHandle{state_, peer.handle_, std::move(task)});
  return transfer;
}

Outcome Engine::notify_and_wait(const PeerRef& peer, Notification notification, Duration timeout) {
  Outcome refused;
  refused.status = may_wait(*state_);
  if (!refused.status.ok()) return refused;
  auto task = start_notification(*state_, peer.handle_, timeout, std::move(notification), true);
  if (!task) {
    refused.status = std::move(task).error();
    return refused;
  }
  state_->driver->wait((*task)->completion->flag(), kNever);
  return (*task)->completion->outcome();
}

std::vector<ReceivedNotification> Engine::notifications() {
  if (::getpid() != state_->pid) return {};
  return state_->notifications->take();
}

Result<int> Engine::completion_fd() {
  KVF_RETURN_IF_ERROR(state_->usable());
  return state_->hub->fd();
}

std::vector<uint64_t> Engine::take_completed() {
  if (::getpid() != state_->pid) return {};  // the descriptor is shared with the parent, whose news they are
  return state_->hub->take();
}

std::string Engine::describe() const {
  if (!state_->usable().ok()) return "{}";
  auto text = std::make_shared<std::string>();
  state_->call([raw = state_.get(), text](const Task& finished) {
    *text = raw->core->describe();
    finished();
  });
  return *text;
}

std::string Engine::metrics() const {
  return state_->metrics.expose();
}

}  // namespace kvferry
