#include "bootstrap/directory.h"

#include <algorithm>

#include "bootstrap/limits.h"
#include "common/text.h"
#include "http/url.h"

namespace kvferry::bootstrap {
namespace {

Error invalid(std::string message, std::string cause = {}) {
  return {ErrorCode::invalid_argument, std::move(message), std::move(cause), "", "bootstrap"};
}

Error superseded(const std::string& engine_id) {
  return {ErrorCode::conflict, "superseded by a process that started later", "it is engine " + engine_id, "",
          "bootstrap"};
}

bool printable(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) >= 0x20 && c != 0x7f; });
}

}  // namespace

Status Directory::check(const Registration& registration) const {
  if (registration.engine_id.empty() || registration.engine_id.size() > kMaxText ||
      !printable(registration.engine_id)) {
    return invalid("engine_id must be 1 to 256 printable bytes");
  }
  const Rank& rank = registration.rank;
  if (std::max({rank.dp, rank.tp, rank.pp}) >= limits_.rank) {
    return invalid("dp_rank, tp_rank and pp_rank must be below " + std::to_string(limits_.rank));
  }
  const std::string_view addr = registration.addr;
  if (!addr.starts_with("tcp://") || addr.size() > kMaxText) return invalid("addr must be tcp://host:port");
  const auto data = http::parse_url(addr.substr(6), 0);
  if (!data.ok() || data->port == 0 || !data->path.empty()) return invalid("addr must be tcp://host:port");
  if (registration.http.empty()) return {};
  const auto control = http::parse_url(registration.http, 0);
  if (registration.http.size() > kMaxText || !control.ok() || control->port == 0 || !control->path.empty()) {
    return invalid("http must be http://host:port");
  }
  // Releases are sent there: nobody may point them at a third machine.
  if (control->host != data->host) return invalid("http and addr must name the same host");
  return {};
}

Duration Directory::granted(const Registration& registration) const {
  if (!registration.ttl) return limits_.plain_ttl;
  return std::clamp(*registration.ttl, limits_.min_ttl, limits_.max_ttl);
}

void Directory::schedule(const std::string& space, Entry& entry, TimePoint now) {
  if (entry.ttl == Duration(0)) return;
  entry.expires = after(now, entry.ttl);
  due_.emplace(entry.expires, &space, entry.what.rank);
}

void Directory::unschedule(const std::string& space, const Entry& entry) {
  if (entry.expires != kNever) due_.erase({entry.expires, &space, entry.what.rank});
}

Result<Directory::Registered> Directory::add(const std::string& space, const Registration& registration,
                                             TimePoint now) {
  expire(now);
  KVF_RETURN_IF_ERROR(check(registration));
  const TimePoint began = now - std::clamp(registration.age.value_or(Duration(0)), Duration(0), kMaxAge);
  Registered answer{Change::added, granted(registration)};

  auto at = spaces_.find(space);
  if (at != spaces_.end()) {
    const auto instance = at->second.instances.find(registration.rank.dp);
    if (instance != at->second.instances.end() && instance->second.engine_id != registration.engine_id) {
      if (began < instance->second.began) return superseded(instance->second.engine_id);
      drop_instance(at, registration.rank.dp);
      answer.change = Change::replaced;
      at = spaces_.find(space);
    }
  }
  if (at == spaces_.end()) {
    if (spaces_.size() >= limits_.namespaces) {
      return Error{ErrorCode::resource_exhausted, "too many namespaces", "", "", "bootstrap"};
    }
    at = spaces_.try_emplace(space).first;
  }
  auto& ranks = at->second.instances[registration.rank.dp].ranks;
  const auto old = ranks.find(registration.rank);
  if (old == ranks.end() && entries_ >= limits_.entries) {
    drop_entry(at, registration.rank);
    return Error{ErrorCode::resource_exhausted, "too many registered workers", "", "", "bootstrap"};
  }
  if (old != ranks.end()) {
    const Registration& known = old->second.what;
    const bool same = known.incarnation == registration.incarnation && known.addr == registration.addr;
    if (!same && began < old->second.began) return superseded(known.engine_id);
    answer.change = same ? Change::renewed : Change::replaced;
    unschedule(at->first, old->second);
  } else {
    ++entries_;
    ++at->second.entries;
  }
  Instance& instance = at->second.instances[registration.rank.dp];
  const bool renewed = answer.change == Change::renewed;
  Entry entry{registration, renewed ? old->second.began : began, kNever, answer.ttl};
  instance.engine_id = registration.engine_id;
  instance.began = std::max(instance.began, entry.began);
  schedule(at->first, ranks.insert_or_assign(registration.rank, std::move(entry)).first->second, now);
  if (!renewed) at->second.stale = true;
  return answer;
}

Result<Duration> Directory::renew(const std::string& space, const WorkerName& name, TimePoint now) {
  expire(now);
  const Error unknown{ErrorCode::not_found, "not registered here", "register first", "", "bootstrap"};
  const auto at = spaces_.find(space);
  if (at == spaces_.end()) return unknown;
  const auto instance = at->second.instances.find(name.rank.dp);
  if (instance == at->second.instances.end()) return unknown;
  if (instance->second.engine_id != name.engine_id) return superseded(instance->second.engine_id);
  const auto found = instance->second.ranks.find(name.rank);
  if (found == instance->second.ranks.end()) return unknown;
  Entry& entry = found->second;
  if (name.incarnation != 0 && entry.what.incarnation != name.incarnation) return superseded(entry.what.engine_id);
  unschedule(at->first, entry);
  schedule(at->first, entry, now);
  return entry.ttl;
}

size_t Directory::remove(const std::string& space, const std::string& engine_id, std::optional<Rank> rank,
                         uint64_t incarnation) {
  const auto at = spaces_.find(space);
  if (at == spaces_.end()) return 0;
  std::vector<Rank> gone;
  for (const auto& [dp, instance] : at->second.instances) {
    if (instance.engine_id != engine_id || (rank && rank->dp != dp)) continue;
    for (const auto& [where, entry] : instance.ranks) {
      const bool meant = (!rank || where == *rank) && (incarnation == 0 || entry.what.incarnation == incarnation);
      if (meant) gone.push_back(where);
    }
  }
  for (const Rank& where : gone) drop_entry(spaces_.find(space), where);
  return gone.size();
}

size_t Directory::expire(TimePoint now) {
  size_t dropped = 0;
  while (!due_.empty() && std::get<TimePoint>(*due_.begin()) <= now) {
    const auto [at, space, rank] = *due_.begin();
    drop_entry(spaces_.find(*space), rank);
    ++dropped;
  }
  return dropped;
}

void Directory::drop_instance(Spaces::iterator space, uint32_t dp) {
  std::vector<Rank> ranks;
  for (const auto& [rank, entry] : space->second.instances[dp].ranks) ranks.push_back(rank);
  const std::string name = space->first;
  for (const Rank& rank : ranks) drop_entry(spaces_.find(name), rank);
}

// Also drops the instance and the namespace that it leaves empty; either may be empty before.
void Directory::drop_entry(Spaces::iterator space, const Rank& rank) {
  const auto instance = space->second.instances.find(rank.dp);
  auto& ranks = instance->second.ranks;
  if (const auto entry = ranks.find(rank); entry != ranks.end()) {
    unschedule(space->first, entry->second);
    ranks.erase(entry);
    --entries_;
    --space->second.entries;
    space->second.stale = true;
  }
  if (ranks.empty()) space->second.instances.erase(instance);
  if (space->second.instances.empty()) spaces_.erase(space);
}

const std::string& Directory::query(const std::string& space) {
  static const std::string kNobody = "{}";
  const auto at = spaces_.find(space);
  if (at == spaces_.end()) return kNobody;
  if (!at->second.stale) return at->second.query;
  std::string out = "{";
  for (const auto& [dp, instance] : at->second.instances) {
    if (out.size() > 1) out += ',';
    out += '"' + std::to_string(dp) + R"(":{"engine_id":)" + json_quote(instance.engine_id) + R"(,"worker_addr":{)";
    std::optional<uint32_t> tp;
    for (const auto& [rank, entry] : instance.ranks) {
      if (tp == rank.tp) {
        out += ',';
      } else {
        out += (tp ? "},\"" : "\"") + std::to_string(rank.tp) + "\":{";
        tp = rank.tp;
      }
      out += '"' + std::to_string(rank.pp) + "\":" + json_quote(entry.what.addr);
    }
    out += "}}}";
  }
  out += '}';
  at->second.query = std::move(out);
  at->second.stale = false;
  return at->second.query;
}

std::vector<const Registration*> Directory::workers(const std::string& space) const {
  std::vector<const Registration*> all;
  const auto at = spaces_.find(space);
  if (at == spaces_.end()) return all;
  all.reserve(at->second.entries);
  for (const auto& [dp, instance] : at->second.instances) {
    for (const auto& [rank, entry] : instance.ranks) all.push_back(&entry.what);
  }
  return all;
}

}  // namespace kvferry::bootstrap
