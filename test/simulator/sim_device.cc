#include "test/simulator/sim_device.h"

#include <cstdlib>
#include <cstring>

namespace kvferry::simulator {

EventId SimDevice::create_event() {
  events_.emplace(next_event_, Event::pending);
  return next_event_++;
}

void SimDevice::signal(EventId event, bool failed) {
  events_.at(event) = failed ? Event::failed : Event::done;
}

std::byte* SimDevice::allocate_staging(size_t length) {
  return static_cast<std::byte*>(std::malloc(length));
}

void SimDevice::free_staging(std::byte* staging, size_t) {
  std::free(staging);
}

Result<CopyId> SimDevice::start_copy(CopyDirection direction, std::span<const CopySpan> spans) {
  const CopyId id = next_copy_++;
  copies_.emplace(id, Copy{direction, {spans.begin(), spans.end()}, 1 + static_cast<int>(id % 3)});
  return id;
}

Result<bool> SimDevice::copy_done(CopyId id) {
  const auto found = copies_.find(id);
  if (found == copies_.end()) return Error{ErrorCode::not_found, "no such copy"};
  if (found->second.polls_left-- > 0) return false;
  for (const CopySpan& span : found->second.spans) {
    if (found->second.direction == CopyDirection::to_host)
      std::memcpy(span.host, span.device, span.length);
    else
      std::memcpy(span.device, span.host, span.length);
  }
  copies_.erase(found);
  return true;
}

Result<bool> SimDevice::event_done(EventId event) {
  const auto found = events_.find(event);
  if (found == events_.end()) return Error{ErrorCode::not_found, "no such event"};
  if (found->second == Event::failed) return Error{ErrorCode::internal, "the device has failed"};
  return found->second == Event::done;
}

}  // namespace kvferry::simulator
