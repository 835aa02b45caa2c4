#include "bindings/python/core/objects.h"

#include <algorithm>

#include "bindings/python/core/errors.h"
#include "common/clock.h"

namespace nb = nanobind;

namespace kvferry::python {

PyEngine::PyEngine(EngineConfig config) : connect_timeout_(config.connect_timeout) {
  auto created = without_gil([&] { return Engine::create(std::move(config)); });
  engine_ = take(std::move(created));
}

std::shared_ptr<Engine> PyEngine::get() const {
  if (!engine_) raise(Error{ErrorCode::cancelled, "the engine is closed"});
  return engine_;
}

void PyEngine::close() {
  if (!engine_) return;
  std::shared_ptr<Engine> last = std::move(engine_);
  without_gil([&] { last.reset(); });
}

void PyRegion::settle(const Status& status) {
  if (status.ok())
    memory_.owner.reset();
  else if (status.error().code == ErrorCode::not_quiet)
    memory_.owner.release();
}

PyRegion::~PyRegion() {
  settle(without_gil([&] { return region_.unregister(std::chrono::seconds(3)); }));
}

void PyRegion::unregister(double patience) {
  unregister_all({this}, patience);
}

void PyRegion::unregister_all(const std::vector<PyRegion*>& regions, double patience) {
  const Duration within = to_duration(patience);
  std::vector<Region*> handles;
  handles.reserve(regions.size());
  for (PyRegion* region : regions) handles.push_back(&region->region_);
  const auto statuses = without_gil([&] { return Region::unregister(handles, within); });
  for (size_t i = 0; i < regions.size(); ++i) regions[i]->settle(statuses[i]);
  for (const Status& status : statuses) check(status);
}

CompletionQueue::CompletionQueue() : state_(std::make_shared<State>(python::take(EventFd::create()))) {}

void CompletionQueue::State::end(uint64_t id) {
  {
    const std::lock_guard lock(mutex);
    ended.push_back(id);
  }
  event.signal();
}

std::vector<uint64_t> CompletionQueue::take() {
  const std::lock_guard lock(state_->mutex);
  state_->event.drain();
  return std::exchange(state_->ended, {});
}

Duration to_duration(std::optional<double> seconds) {
  if (!seconds) return Duration(0);
  if (!(*seconds > 0) || *seconds > 1e9) throw nb::value_error("a time must be from 0 to 1e9 seconds and not 0");
  return Duration(static_cast<int64_t>(*seconds * 1e9));
}

}  // namespace kvferry::python
