#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "common/clock.h"
#include "common/result.h"

namespace kvferry::bootstrap {

// A worker's place in its instance.
struct Rank {
  uint32_t dp = 0, tp = 0, pp = 0;
  auto operator<=>(const Rank&) const = default;
};

// What a worker tells of itself. vLLM's workers send engine_id, rank and addr; kvferry's send all of it.
struct Registration {
  std::string engine_id;
  Rank rank;
  std::string addr;             // "tcp://host:port", as vLLM's decoders read it
  std::string http;             // "http://host:port" of the worker's own server; empty: it has none
  uint64_t incarnation = 0;     // 0: not told
  std::optional<Duration> age;  // since the process started; not told: it starts now
  std::optional<Duration> ttl;  // asked for; not told: the worker will not renew (vLLM's never do)
};

// Which registration a heartbeat or a removal means.
struct WorkerName {
  std::string engine_id;
  Rank rank;
  uint64_t incarnation = 0;  // 0: any
};

// Who serves under which rank, by namespace. Pure: no clock, no I/O; the caller says what time it is. Not thread-safe.
//
// The newest process wins: a registration replaces one of another engine id (for the whole data-parallel rank), or of
// another incarnation or address of the same engine id (for that rank), unless it is of a process that started earlier.
// Entries with a TTL are dropped when it has passed without a registration or heartbeat.
class Directory {
 public:
  struct Limits {
    size_t namespaces = 1024;
    size_t entries = 65536;  // of all namespaces: at most 1.5 KiB each, so 100 MiB
    uint32_t rank = 4096;    // ranks are below it
    Duration min_ttl = std::chrono::milliseconds(500);
    Duration max_ttl = std::chrono::seconds(60);
    Duration plain_ttl{0};  // of registrations that will not be renewed; 0: kept until replaced
  };
  explicit Directory(const Limits& limits) : limits_(limits) {}

  enum class Change { added, renewed, replaced };
  struct Registered {
    Change change = Change::added;
    Duration ttl{0};  // granted; 0: until replaced
  };
  // Errors: invalid_argument, resource_exhausted (a limit), conflict (superseded by a process that started later).
  Result<Registered> add(const std::string& space, const Registration& registration, TimePoint now);

  // Renews the entry's TTL and returns it. Errors: not_found (register again), conflict (superseded).
  Result<Duration> renew(const std::string& space, const WorkerName& name, TimePoint now);

  // How many entries of that engine id were there: the one of `rank`, or all without one. An incarnation other than 0
  // must match.
  size_t remove(const std::string& space, const std::string& engine_id, std::optional<Rank> rank, uint64_t incarnation);

  // Drops what is over, in O(dropped); returns how many. All calls above do it too.
  size_t expire(TimePoint now);

  // vLLM's answer to /query: {"<dp>":{"engine_id":"...","worker_addr":{"<tp>":{"<pp>":"tcp://..."}}}}. Valid until the
  // next change.
  const std::string& query(const std::string& space);
  // All entries of a namespace, by rank.
  std::vector<const Registration*> workers(const std::string& space) const;

  size_t size() const { return entries_; }
  size_t namespaces() const { return spaces_.size(); }

 private:
  struct Entry {
    Registration what;
    TimePoint began{};
    TimePoint expires = kNever;
    Duration ttl{0};
  };
  struct Instance {  // one data-parallel rank
    std::string engine_id;
    TimePoint began{};  // of its youngest rank
    std::map<Rank, Entry> ranks;
  };
  struct Space {
    std::map<uint32_t, Instance> instances;
    size_t entries = 0;
    std::string query;
    bool stale = true;  // `query` must be written anew
  };
  using Spaces = std::map<std::string, Space>;
  using Due = std::tuple<TimePoint, const std::string*, Rank>;

  Status check(const Registration& registration) const;
  Duration granted(const Registration& registration) const;
  void schedule(const std::string& space, Entry& entry, TimePoint now);
  void unschedule(const std::string& space, const Entry& entry);
  void drop_instance(Spaces::iterator space, uint32_t dp);
  void drop_entry(Spaces::iterator space, const Rank& rank);

  const Limits limits_;
  Spaces spaces_;
  std::set<Due> due_;  // entries with a TTL; the strings are keys of spaces_
  size_t entries_ = 0;
};

}  // namespace kvferry::bootstrap
