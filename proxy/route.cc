#include "proxy/route.h"

#include <algorithm>
#include <limits>

namespace kvferry::proxy {
namespace {

// A pinned parcel counts like this many tokens in flight: the cache it holds is not free, but costs no compute.
constexpr double kTokensPerPinnedParcel = 64;
constexpr double kTokensPerStream = 256;
// A cached prefix wins while its backend has at most this much more to do than the least loaded one.
constexpr double kMaxImbalance = 2.0;
constexpr double kImbalanceSlack = 4096;  // tokens
constexpr double kWorthwhileShare = 0.1;

double weighted(const Candidate& candidate) {
  return (candidate.load + 1) / std::max(candidate.weight, 0.01);
}

std::optional<size_t> least_loaded(std::span<const Candidate> candidates, uint64_t ordinal) {
  std::optional<size_t> best;
  // Starting at the ordinal spreads what is equally loaded.
  for (size_t step = 0; step < candidates.size(); ++step) {
    const size_t i = (static_cast<size_t>(ordinal) + step) % candidates.size();
    if (candidates[i].usable && (!best || weighted(candidates[i]) < weighted(candidates[*best]))) best = i;
  }
  return best;
}

std::optional<size_t> round_robin(std::span<const Candidate> candidates, uint64_t ordinal) {
  std::vector<size_t> usable;
  for (size_t i = 0; i < candidates.size(); ++i) {
    // A starting backend is passed over in proportion to what it lacks.
    const double draw = static_cast<double>(stable_hash({}, ordinal * 31 + i) >> 11) * 0x1.0p-53;
    if (candidates[i].usable && draw < candidates[i].weight) usable.push_back(i);
  }
  if (usable.empty()) return least_loaded(candidates, ordinal);
  return usable[static_cast<size_t>(ordinal % usable.size())];
}

std::optional<size_t> best_prefix(std::span<const Candidate> candidates, uint64_t ordinal) {
  const auto idle = least_loaded(candidates, ordinal);
  if (!idle) return idle;
  const double limit = candidates[*idle].load * kMaxImbalance + kImbalanceSlack;
  std::optional<size_t> best;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const Candidate& candidate = candidates[i];
    if (!candidate.usable || candidate.cached_share < kWorthwhileShare || candidate.load > limit) continue;
    const bool better =
        !best || candidate.cached_share > candidates[*best].cached_share ||
        (candidate.cached_share == candidates[*best].cached_share && weighted(candidate) < weighted(candidates[*best]));
    if (better) best = i;
  }
  return best ? best : idle;
}

// Rendezvous hashing: a backend that comes or goes moves only its own sessions.
std::optional<size_t> by_session(std::span<const Candidate> candidates, std::string_view session) {
  std::optional<size_t> best;
  uint64_t best_score = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const uint64_t score = stable_hash(session, candidates[i].key);
    if (candidates[i].usable && (!best || score > best_score)) {
      best = i;
      best_score = score;
    }
  }
  return best;
}

}  // namespace

std::optional<Policy> parse_policy(std::string_view name) {
  for (const Policy policy : {Policy::round_robin, Policy::least_loaded, Policy::prefix, Policy::session}) {
    if (to_string(policy) == name) return policy;
  }
  return std::nullopt;
}

std::string_view to_string(Policy policy) {
  switch (policy) {
    case Policy::round_robin:
      return "round_robin";
    case Policy::least_loaded:
      return "least_loaded";
    case Policy::prefix:
      return "prefix";
    case Policy::session:
      return "session";
  }
  return "unknown";
}

std::optional<size_t> choose(Policy policy, std::span<const Candidate> candidates, const RouteKey& key) {
  if (candidates.empty()) return std::nullopt;
  switch (policy) {
    case Policy::round_robin:
      return round_robin(candidates, key.ordinal);
    case Policy::prefix:
      return best_prefix(candidates, key.ordinal);
    case Policy::session:
      if (!key.session.empty()) return by_session(candidates, key.session);
      break;
    case Policy::least_loaded:
      break;
  }
  return least_loaded(candidates, key.ordinal);
}

double uncached_tokens(size_t prompt_bytes, double cached_share) {
  return static_cast<double>(prompt_bytes) / 4 * (1 - std::clamp(cached_share, 0.0, 1.0));
}

double prefill_load(double tokens_in_flight, size_t parcels_pinned) {
  return tokens_in_flight + kTokensPerPinnedParcel * static_cast<double>(parcels_pinned);
}

double decode_load(size_t open_streams, double tokens_in_flight) {
  return tokens_in_flight + kTokensPerStream * static_cast<double>(open_streams);
}

uint64_t stable_hash(std::string_view text, uint64_t seed) {
  uint64_t hash = 14695981039346656037ULL ^ seed;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  hash ^= hash >> 33;
  hash *= 0xff51afd7ed558ccdULL;
  hash ^= hash >> 33;
  hash *= 0xc4ceb9fe1a85ec53ULL;
  return hash ^ (hash >> 33);
}

std::vector<uint64_t> PrefixIndex::paths(std::string_view prompt) {
  std::vector<uint64_t> found;
  uint64_t path = 0;
  const size_t blocks = std::min(prompt.size() / kBlock, kMaxBlocks);
  found.reserve(blocks);
  for (size_t i = 0; i < blocks; ++i) {
    path = stable_hash(prompt.substr(i * kBlock, kBlock), path);
    found.push_back(path);
  }
  return found;
}

std::vector<double> PrefixIndex::shares(std::string_view prompt, std::span<const Candidate> candidates) const {
  std::vector<double> shares(candidates.size(), 0);
  const std::vector<uint64_t> path = paths(prompt);
  for (size_t depth = 0; depth < path.size(); ++depth) {
    const auto found = table_.find(path[depth]);
    if (found == table_.end()) break;
    const auto& holders = found->second.holders;
    for (size_t i = 0; i < candidates.size(); ++i) {
      if (std::find(holders.begin(), holders.end(), candidates[i].key) == holders.end()) continue;
      shares[i] = static_cast<double>(depth + 1) / static_cast<double>(path.size());
    }
  }
  return shares;
}

void PrefixIndex::remember(std::string_view prompt, uint64_t key) {
  for (const uint64_t path : paths(prompt)) {
    const auto [found, fresh] = table_.try_emplace(path);
    Entry& entry = found->second;
    if (fresh) {
      entry.age = ages_.insert(ages_.begin(), path);
    } else {
      ages_.splice(ages_.begin(), ages_, entry.age);
    }
    if (std::find(entry.holders.begin(), entry.holders.end(), key) != entry.holders.end()) continue;
    if (entry.holders.size() == kMaxHolders) entry.holders.erase(entry.holders.begin());
    entry.holders.push_back(key);
  }
  while (table_.size() > max_entries_) {
    table_.erase(ages_.back());
    ages_.pop_back();
  }
}

void PrefixIndex::forget(uint64_t key) {
  for (auto& [path, entry] : table_) std::erase(entry.holders, key);
}

}  // namespace kvferry::proxy
