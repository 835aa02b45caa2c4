#include <algorithm>

#include "engine/parcel/owner.h"

// Readers come and go, and their claims with them.

namespace kvferry {

void ParcelOwner::on_reader_came(OwnerSession& session) {
  readers_[{session.engine_id(), session.incarnation()}].sessions.push_back(&session);
}

// I5: another incarnation under the same name is another reader. Nobody can say which of those that have a session is
// the newest, since a hello may be handled after a later one's: each has failed when its own session stays away, and
// until then another may claim its rank's parcels in its place.
void ParcelOwner::on_reader_left(OwnerSession& session) {
  const ReaderKey key{session.engine_id(), session.incarnation()};
  const auto found = readers_.find(key);
  if (found == readers_.end() || std::erase(found->second.sessions, &session) == 0) return;
  const TimePoint now = parts_.loop.now();
  Reader& reader = found->second;
  if (reader.sessions.empty()) reader.alone_since = now;
  for (auto at = claims_.lower_bound({key, 0}); at != claims_.end() && at->first.reader == key; ++at) {
    Claim& claim = *at->second;
    if (std::erase(claim.heard_over, &session) > 0 && claim.heard_over.empty()) claim.lost_since = now;
  }
  watch_reader(key, reader);
}

// The reader stands by this claim as long as one of the sessions stands over which it has asked for it.
void ParcelOwner::hear_of(Claim& claim, const Guest& session) {
  const auto reader = readers_.find(claim.key.reader);
  if (reader == readers_.end() || std::find(reader->second.sessions.begin(), reader->second.sessions.end(), &session) ==
                                      reader->second.sessions.end())
    return;
  if (std::find(claim.heard_over.begin(), claim.heard_over.end(), &session) == claim.heard_over.end())
    claim.heard_over.push_back(&session);
  claim.lost_since = kNever;
}

// At the end of the grace of what was lost first.
void ParcelOwner::watch_reader(const ReaderKey& key, Reader& reader) {
  if (reader.grace) return;
  TimePoint first = reader.sessions.empty() ? reader.alone_since : kNever;
  for (auto at = claims_.lower_bound({key, 0}); at != claims_.end() && at->first.reader == key; ++at)
    first = std::min(first, at->second->lost_since);
  if (first == kNever) return;
  reader.grace = std::make_unique<Timer>(parts_.loop);
  reader.grace->arm(after(first, limits_.reader_grace), [this, key] { end_grace(key); });
}

// A reader that is back asks again for each claim that it still wants. What it does not ask for it has done with, and
// the word of that was lost with a session: nobody would ever settle it.
void ParcelOwner::end_grace(const ReaderKey& key) {
  const TimePoint lost_by = parts_.loop.now() - limits_.reader_grace;
  std::vector<ClaimPtr> lost;
  for (auto at = claims_.lower_bound({key, 0}); at != claims_.end() && at->first.reader == key; ++at)
    if (at->second->lost_since <= lost_by) lost.push_back(at->second);
  for (const ClaimPtr& claim : lost) fail_claim(claim, false);
  const auto found = readers_.find(key);
  if (found == readers_.end()) return;
  Reader& reader = found->second;
  if (reader.sessions.empty() && reader.alone_since <= lost_by) {
    readers_.erase(found);
    return;
  }
  reader.grace.reset();
  watch_reader(key, reader);
}

}  // namespace kvferry
