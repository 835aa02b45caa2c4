#include <fmt/format.h>

#include <map>

#include "engine/engine_state.h"

// The handles of engine/engine.h: a region, and how there comes to be one, a peer, a transfer.

namespace kvferry {

using detail::EngineState;

// ---- Region

Region::Region(Region&& other) noexcept : engine_(std::move(other.engine_)), info_(std::move(other.info_)) {}

Region& Region::operator=(Region&& other) noexcept {
  if (this != &other) {
    if (engine_) [[maybe_unused]]
      const Status ignored = unregister();
    engine_ = std::move(other.engine_);
    info_ = std::move(other.info_);
  }
  return *this;
}

Region::~Region() {
  if (engine_) [[maybe_unused]]
    const Status ignored = unregister();
}

Status Region::unregister(Duration patience) {
  Region* const self = this;
  return unregister({&self, 1}, patience).front();
}

std::vector<Status> Region::unregister(std::span<Region* const> regions, Duration patience) {
  std::vector<Status> statuses(regions.size());
  std::map<std::shared_ptr<EngineState>, std::vector<size_t>> by_engine;  // indices into `regions`
  for (size_t i = 0; i < regions.size(); ++i)
    if (regions[i]->engine_) by_engine[std::move(regions[i]->engine_)].push_back(i);
  for (const auto& [engine, indices] : by_engine) {
    std::vector<RegionId> ids;
    for (const size_t i : indices) ids.push_back(regions[i]->info_.id);
    std::vector<Status> told = engine->unregister(ids, patience);
    for (size_t k = 0; k < indices.size(); ++k) statuses[indices[k]] = std::move(told[k]);
  }
  return statuses;
}

MemoryKind Engine::kind_of(const void* address) const {
  return state_->registry->kind_of(address);
}

Result<Region> Engine::register_memory(void* base, uint64_t length, MemoryKind kind, uint32_t permissions) {
  const std::pair<void*, uint64_t> range{base, length};
  KVF_ASSIGN_OR_RETURN(std::vector<Region> regions, register_memory({&range, 1}, kind, permissions));
  return std::move(regions.front());
}

Result<std::vector<Region>> Engine::register_memory(std::span<const std::pair<void*, uint64_t>> ranges, MemoryKind kind,
                                                    uint32_t permissions) {
  KVF_RETURN_IF_ERROR(state_->usable());
  if ((permissions & ~uint32_t{kRemoteReadWrite}) != 0)
    return Error{ErrorCode::invalid_argument, fmt::format("unknown permissions {:#x}", permissions)};
  if (state_->config.strict && permissions != kPrivate)
    return Error{ErrorCode::permission_denied,
                 "this engine is strict: regions are private, and only parcels' tickets open them"};
  std::vector<Region> regions;
  regions.reserve(ranges.size());
  for (const auto& [base, length] : ranges) {
    KVF_ASSIGN_OR_RETURN(const RegionInfo info, state_->registry->add(base, length, kind, permissions));
    regions.push_back(Region(state_, info));
  }
  state_->announce();
  return regions;
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

namespace {

// Runs `ask`, which calls back with the peer's answer, on the loop and waits for that.
Status ask_peer(const detail::PeerHandle& handle, Duration patience,
                const std::function<void(EngineCore&, std::function<void(Status)>)>& ask) {
  EngineState& engine = *handle.engine;
  if (engine.driver->owned_here())
    return Error{ErrorCode::invalid_argument, "this would block the engine's loop: call it outside of callbacks"};
  struct Answer {
    std::mutex mutex;
    std::optional<Status> status;
  };
  auto answer = std::make_shared<Answer>();
  engine.call(
      [&engine, answer, ask](Task finished) {
        ask(*engine.core, [answer, finished](Status status) {
          const std::lock_guard lock(answer->mutex);
          answer->status = std::move(status);
          finished();
        });
      },
      after(engine.clock->now(), patience));
  const std::lock_guard lock(answer->mutex);
  if (answer->status) return std::move(*answer->status);
  return Error{ErrorCode::deadline_exceeded,
               fmt::format("no answer from {} after {:.1f} s", handle.address, seconds(patience))};
}

}  // namespace

Status PeerRef::connect(Duration patience) const {
  KVF_RETURN_IF_ERROR(handle_->engine->usable());
  if (handle_->view->get().ready) return {};
  return ask_peer(*handle_, patience, [index = handle_->index](EngineCore& core, std::function<void(Status)> answer) {
    core.connect(index, std::move(answer));
  });
}

Status PeerRef::sync(Duration patience) const {
  KVF_RETURN_IF_ERROR(handle_->engine->usable());
  return ask_peer(*handle_, patience, [index = handle_->index](EngineCore& core, std::function<void(Status)> answer) {
    core.sync(index, std::move(answer));
  });
}

Result<uint64_t> PeerRef::locate(std::span<const uint64_t> addresses, std::span<Pair> pairs) const {
  if (addresses.size() != pairs.size())
    return Error{ErrorCode::invalid_argument, "as many addresses as pairs are needed"};
  const PeerView::Snapshot view = handle_->view->get();
  if (!view.regions) return Error{ErrorCode::not_found, "no session with " + handle_->address};
  const RegionInfo* region = nullptr;
  for (size_t i = 0; i < pairs.size(); ++i) {
    const uint64_t length = pairs[i].length;
    const uint64_t offset = region != nullptr ? addresses[i] - region->base : 0;
    if (region == nullptr || offset >= region->length || length > region->length - offset)
      region = view.regions->find_address(addresses[i], length);
    if (region == nullptr)
      return Error{ErrorCode::not_found,
                   fmt::format("{} has not registered {} bytes at 0x{:x}", handle_->address, length, addresses[i])};
    pairs[i].region = region->id;
    pairs[i].offset = addresses[i] - region->base;
  }
  return view.incarnation;
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
