#include <fmt/format.h>

#include "engine/engine_state.h"

// The handles of engine/engine.h: a region, a peer, a transfer.

namespace kvferry {

using detail::EngineState;

// ---- Region

Region::Region(Region&& other) noexcept : engine_(std::move(other.engine_)), info_(other.info_) {}

Region& Region::operator=(Region&& other) noexcept {
  if (this != &other) {
    if (engine_) [[maybe_unused]]
      const Status ignored = unregister();
    engine_ = std::move(other.engine_);
    info_ = other.info_;
  }
  return *this;
}

Region::~Region() {
  if (engine_) [[maybe_unused]]
    const Status ignored = unregister();
}

Status Region::unregister(Duration patience) {
  if (!engine_) return {};
  const std::shared_ptr<EngineState> engine = std::move(engine_);
  return engine->unregister(info_.id, patience);
}

// ---- PeerRef

const std::string& PeerRef::address() const {
  return handle_->address;
}

std::string PeerRef::engine_id() const {
  return handle_->view->get().engine_id;
}

uint64_t PeerRef::incarnation() const {
  return handle_->view->get().incarnation;
}

std::vector<RegionInfo> PeerRef::regions() const {
  const auto table = handle_->view->get().regions;
  return table ? table->regions() : std::vector<RegionInfo>();
}

std::optional<RegionInfo> PeerRef::find_address(uint64_t address, uint64_t length) const {
  const auto table = handle_->view->get().regions;
  const RegionInfo* found = table ? table->find_address(address, length) : nullptr;
  return found != nullptr ? std::optional<RegionInfo>(*found) : std::nullopt;
}

Status PeerRef::connect(Duration patience) const {
  EngineState& engine = *handle_->engine;
  KVF_RETURN_IF_ERROR(engine.usable());
  if (handle_->view->get().ready) return {};
  if (engine.driver->owned_here())
    return Error{ErrorCode::invalid_argument, "connect() would block the engine's loop: call it outside of callbacks"};
  struct Answer {
    std::mutex mutex;
    std::optional<Status> status;
  };
  auto answer = std::make_shared<Answer>();
  engine.call(
      [&engine, answer, index = handle_->index](Task finished) {
        engine.core->connect(index, [answer, finished](Status status) {
          const std::lock_guard lock(answer->mutex);
          answer->status = std::move(status);
          finished();
        });
      },
      after(engine.clock->now(), patience));
  const std::lock_guard lock(answer->mutex);
  if (answer->status) return std::move(*answer->status);
  return Error{ErrorCode::deadline_exceeded,
               fmt::format("no session with {} after {:.1f} s", handle_->address, seconds(patience))};
}

// ---- Transfer

uint64_t Transfer::id() const {
  return handle_->task->id;
}

bool Transfer::done() const {
  return handle_->task->completion->done();
}

std::optional<Outcome> Transfer::poll() const {
  const Completion& completion = *handle_->task->completion;
  return completion.done() ? std::optional<Outcome>(completion.outcome()) : std::nullopt;
}

Outcome Transfer::wait() const {
  EngineState& engine = *handle_->engine;
  const Completion& completion = *handle_->task->completion;
  Outcome refused;
  if (Status status = engine.usable(); !status.ok() && !completion.done()) {
    refused.status = std::move(status);
    return refused;
  }
  if (!completion.done() && engine.driver->owned_here()) {
    refused.status =
        Error{ErrorCode::invalid_argument, "wait() would block the engine's loop: call it outside of callbacks"};
    return refused;
  }
  engine.driver->wait(completion.flag(), kNever);
  return completion.outcome();
}

std::optional<Outcome> Transfer::wait_for(Duration patience) const {
  EngineState& engine = *handle_->engine;
  if (!done() && engine.usable().ok() && !engine.driver->owned_here())
    engine.driver->wait(handle_->task->completion->flag(), after(engine.clock->now(), patience));
  return poll();
}

void Transfer::on_done(std::function<void(const Outcome&)> callback) const {
  Completion& completion = *handle_->task->completion;
  if (!completion.add_callback(callback)) callback(completion.outcome());
}

void Transfer::cancel() const {
  EngineState& engine = *handle_->engine;
  if (done() || !engine.usable().ok()) return;
  engine.call([&](Task finished) {
    engine.core->cancel(handle_->peer->index, handle_->task, Error{ErrorCode::cancelled, "cancelled by the caller"});
    finished();
  });
}

}  // namespace kvferry
