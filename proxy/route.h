#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace kvferry::proxy {

// What a backend is for.
enum class Role { prefill, decode };

// Which backend takes a request: pure functions of what is known about them.

enum class Policy { round_robin, least_loaded, prefix, session };
std::optional<Policy> parse_policy(std::string_view name);
std::string_view to_string(Policy policy);

struct Candidate {
  uint64_t key = 0;         // stable identity: backend and dp rank, hashed
  bool usable = true;       // healthy, breaker closed, not draining
  double weight = 1;        // (0, 1]: below 1 while it starts slowly
  double load = 0;          // see prefill_load, decode_load
  double cached_share = 0;  // [0, 1]: how much of the prompt it has probably seen
};

struct RouteKey {
  uint64_t ordinal = 0;      // counts requests, for round_robin
  std::string_view session;  // X-Session-ID, user, ...; empty: fall back to least_loaded
};

// Index of the one to take; nothing if none is usable.
std::optional<size_t> choose(Policy policy, std::span<const Candidate> candidates, const RouteKey& key);

// What a prompt costs a prefiller: tokens (about four bytes each) that it has not cached.
double uncached_tokens(size_t prompt_bytes, double cached_share);
// A prefiller's load: tokens in flight, and pinned parcels, which take cache away from it.
double prefill_load(double tokens_in_flight, size_t parcels_pinned);
// A decoder's: each open stream takes a slot of every step.
double decode_load(size_t open_streams, double tokens_in_flight);

// FNV-1a with a finisher: the same on every machine, so that a restarted proxy keeps sessions where they were.
uint64_t stable_hash(std::string_view text, uint64_t seed = 0);

// Which backends have probably cached the beginning of a prompt: a radix tree over text with edges of kBlock bytes,
// kept as a table from the hash of each path to the backends that were sent it. Bounded (I6): the least recently used
// paths are forgotten; one entry is about 120 bytes.
class PrefixIndex {
 public:
  static constexpr size_t kBlock = 128;
  static constexpr size_t kMaxBlocks = 256;  // of one prompt: what lies behind 32 KiB does not change the choice
  static constexpr size_t kMaxHolders = 8;   // of one path

  explicit PrefixIndex(size_t max_entries) : max_entries_(max_entries) {}

  // For each candidate key the share of the prompt that it has seen.
  std::vector<double> shares(std::string_view prompt, std::span<const Candidate> candidates) const;
  void remember(std::string_view prompt, uint64_t key);
  void forget(uint64_t key);
  size_t entries() const { return table_.size(); }

 private:
  struct Entry {
    std::vector<uint64_t> holders;
    std::list<uint64_t>::iterator age;
  };
  static std::vector<uint64_t> paths(std::string_view prompt);

  const size_t max_entries_;
  std::unordered_map<uint64_t, Entry> table_;
  std::list<uint64_t> ages_;  // most recent first
};

}  // namespace kvferry::proxy
