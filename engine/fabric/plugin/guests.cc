#include "engine/fabric/plugin/guests.h"

#include <algorithm>

namespace kvferry::plugin {

void Guests::left(uint64_t session) {
  const auto entry = guests_.extract(session);
  if (entry.empty()) return;
  const Guest& guest = entry.mapped();
  if (!fence_(guest.client) && guest.quiet != UINT64_MAX) lost_one_ = true;
}

void Guests::quiet(uint64_t session, uint64_t version) {
  const auto found = guests_.find(session);
  if (found != guests_.end()) found->second.quiet = std::max(found->second.quiet, version);
}

void Guests::known(uint64_t session, uint64_t version) {
  const auto found = guests_.find(session);
  if (found != guests_.end()) found->second.known = std::max(found->second.known, version);
}

// One that was fenced may come back when it has said that it knows why. It need not be quiet: what was under way on the
// connection that was ended is over for sure only when the next one stands.
bool Guests::admits(uint64_t client) const {
  return std::any_of(guests_.begin(), guests_.end(), [client](const auto& entry) {
    const Guest& guest = entry.second;
    return guest.client == client && std::max(guest.quiet, guest.known) >= guest.fenced && guest.quiet != UINT64_MAX;
  });
}

bool Guests::quiet_since(uint64_t version) const {
  if (lost_one_) return false;
  return std::all_of(guests_.begin(), guests_.end(), [&](const auto& entry) {
    return entry.second.quiet >= version || (entry.second.fence_held && entry.second.fenced >= version);
  });
}

void Guests::fence_late(uint64_t version) {
  for (auto& [session, guest] : guests_) {
    if (guest.quiet >= version || guest.fenced >= version) continue;
    guest.fenced = version;
    guest.fence_held = fence_(guest.client);
    ++cut_off_;
  }
}

}  // namespace kvferry::plugin
