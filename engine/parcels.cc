#include "engine/engine_state.h"
#include "engine/parcel.h"

namespace kvferry {

using detail::EngineState;

namespace detail {

struct ParcelReadHandle {
  std::shared_ptr<EngineState> engine;
  uint64_t id = 0;
  std::atomic<bool> done{false};
  std::mutex mutex;
  std::optional<ParcelReadOutcome> outcome;                              // written once, before `done`
  std::vector<std::function<void(const ParcelReadOutcome&)>> callbacks;  // GUARDED_BY(mutex)
  ParcelReader::ReadId read = 0;                                         // on loop
};

}  // namespace detail

namespace {

void finish(const std::shared_ptr<detail::ParcelReadHandle>& handle, const ParcelOutcome& ended) {
  std::vector<std::function<void(const ParcelReadOutcome&)>> callbacks;
  {
    const std::lock_guard lock(handle->mutex);
    handle->outcome = ParcelReadOutcome{ended.state, ended.status, ended.bytes, ended.tokens, ended.fabric};
    handle->done.store(true, std::memory_order_release);
    callbacks.swap(handle->callbacks);
  }
  handle->engine->hub->ended(handle->id);
  for (const auto& callback : callbacks) callback(*handle->outcome);
}

}  // namespace

// ---- ParcelReading

bool ParcelReading::done() const {
  return handle_->done.load(std::memory_order_acquire);
}

uint64_t ParcelReading::id() const {
  return handle_->id;
}

std::optional<ParcelReadOutcome> ParcelReading::poll() const {
  return done() ? handle_->outcome : std::optional<ParcelReadOutcome>();
}

ParcelReadOutcome ParcelReading::wait() const {
  EngineState& engine = *handle_->engine;
  if (!done() && (engine.driver->owned_here() || !engine.usable().ok())) {
    ParcelReadOutcome refused;
    refused.status = Error{ErrorCode::invalid_argument, "wait() cannot be called here"};
    return refused;
  }
  engine.driver->wait(handle_->done, kNever);
  return *handle_->outcome;
}

std::optional<ParcelReadOutcome> ParcelReading::wait_for(Duration patience) const {
  EngineState& engine = *handle_->engine;
  if (!done() && !engine.driver->owned_here() && engine.usable().ok())
    engine.driver->wait(handle_->done, after(engine.clock->now(), patience));
  return poll();
}

void ParcelReading::on_done(std::function<void(const ParcelReadOutcome&)> callback) const {
  {
    const std::lock_guard lock(handle_->mutex);
    if (!handle_->outcome) return handle_->callbacks.push_back(std::move(callback));
  }
  callback(*handle_->outcome);
}

void ParcelReading::cancel() const {
  EngineState& engine = *handle_->engine;
  if (done() || !engine.usable().ok()) return;
  engine.call([&](const Task& finished) {
    engine.parcel_reader->cancel(handle_->read);
    finished();
  });
}

// ---- Parcels

Parcels::Parcels(Engine& engine) : engine_(engine.state_) {}

Status Parcels::set_cache(std::string instance_id, KvLayout layout) {
  KVF_RETURN_IF_ERROR(engine_->usable());
  Status status;
  engine_->call([&](const Task& finished) {
    status = engine_->parcel_owner->set_cache(std::move(instance_id), layout);
    finished();
  });
  if (status.ok()) layout_ = std::make_shared<const KvLayout>(std::move(layout));
  return status;
}

Status Parcels::announce(const std::string& transfer_id, Duration lease) {
  KVF_RETURN_IF_ERROR(engine_->usable());
  Status status;
  engine_->call([&](const Task& finished) {
    status = engine_->parcel_owner->announce(transfer_id, lease);
    finished();
  });
  return status;
}

void Parcels::withdraw(const std::string& transfer_id) {
  if (!engine_->usable().ok()) return;
  engine_->call([&](const Task& finished) {
    engine_->parcel_owner->withdraw(transfer_id);
    finished();
  });
}

Status Parcels::publish(ParcelSpec spec) {
  KVF_RETURN_IF_ERROR(engine_->usable());
  Status status;
  engine_->call([&](const Task& finished) {
    status = engine_->parcel_owner->publish(std::move(spec));
    finished();
  });
  return status;
}

bool Parcels::release(const std::string& transfer_id, bool force) {
  if (!engine_->usable().ok()) return true;
  ReleaseAnswer answer = ReleaseAnswer::done;
  engine_->call([&](const Task& finished) {
    answer = engine_->parcel_owner->release(transfer_id, force);
    finished();
  });
  return answer != ReleaseAnswer::waits_for_readers;
}

void Parcels::release(const std::string& transfer_id, bool force, std::function<void(ReleaseAnswer)> done) {
  if (!engine_->usable().ok()) return done(ReleaseAnswer::done);
  engine_->driver->post([raw = engine_.get(), transfer_id, force, done = std::move(done)] {
    done(raw->parcel_owner->release(transfer_id, force));
  });
}

std::optional<ParcelStatus> Parcels::status(const std::string& transfer_id) const {
  std::optional<ParcelStatus> status;
  if (!engine_->usable().ok()) return status;
  engine_->call([&](const Task& finished) {
    status = engine_->parcel_owner->status(transfer_id);
    finished();
  });
  return status;
}

void Parcels::status(const std::string& transfer_id, std::function<void(std::optional<ParcelStatus>)> done) const {
  if (!engine_->usable().ok()) return done(std::nullopt);
  engine_->driver->post(
      [raw = engine_.get(), transfer_id, done = std::move(done)] { done(raw->parcel_owner->status(transfer_id)); });
}

std::vector<ParcelReleased> Parcels::take_released() {
  return engine_->parcel_events->take();
}

Result<ParcelReading> Parcels::read(ParcelReadRequest request) {
  return start(std::move(request), false);
}

ParcelReadOutcome Parcels::read_and_wait(ParcelReadRequest request) {
  ParcelReadOutcome refused;
  if (engine_->driver->owned_here()) {
    refused.status = Error{ErrorCode::invalid_argument, "this would block the engine's loop: use read() in callbacks"};
    return refused;
  }
  auto reading = start(std::move(request), true);
  if (reading) return reading->wait();
  refused.status = std::move(reading).error();
  return refused;
}

Result<ParcelReading> Parcels::start(ParcelReadRequest request, bool waiter_follows) {
  KVF_RETURN_IF_ERROR(engine_->usable());
  if (!layout_) return Error{ErrorCode::invalid_argument, "read before the cache is described"};
  if (engine_->in_flight.fetch_add(1, std::memory_order_relaxed) >= engine_->config.max_transfers) {
    engine_->in_flight.fetch_sub(1, std::memory_order_relaxed);
    return Error{ErrorCode::resource_exhausted, "max_transfers are in flight"};
  }
  ParcelReading reading;
  reading.handle_ = std::make_shared<detail::ParcelReadHandle>();
  reading.handle_->engine = engine_;
  reading.handle_->id = engine_->next_transfer.fetch_add(1, std::memory_order_relaxed);
  ParcelRead read;
  read.transfer_id = std::move(request.transfer_id);
  read.expected_instance_id = std::move(request.expected_instance_id);
  for (const PeerRef& owner : request.owners) read.owners.push_back(owner.handle_->index);
  read.group_instance_id = std::move(request.group_instance_id);
  read.fingerprint = std::move(request.fingerprint);
  read.layout = layout_;
  read.blocks = std::move(request.blocks);
  read.first_token = request.first_token;
  read.end_token = request.end_token;
  read.more = request.more;
  read.event = request.event;
  read.deadline = after(engine_->clock->now(), request.timeout);
  Task task = [raw = engine_.get(), handle = reading.handle_, read = std::move(read)]() mutable {
    // The outcome may come before read() returns.
    const auto id =
        raw->parcel_reader->read(std::move(read), [handle](const ParcelOutcome& outcome) { finish(handle, outcome); });
    handle->read = id;
  };
  engine_->driver->post(std::move(task), waiter_follows);
  return reading;
}

void Parcels::release_at(const PeerRef& owner, const std::string& transfer_id, bool force, Duration timeout) {
  if (!engine_->usable().ok()) return;
  const TimePoint deadline = after(engine_->clock->now(), timeout);
  engine_->driver->post([raw = engine_.get(), index = owner.handle_->index, transfer_id, force, deadline] {
    raw->parcel_reader->release(index, transfer_id, force, deadline);
  });
}

}  // namespace kvferry
