#pragma once

#include <algorithm>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bootstrap/directory.h"
#include "bootstrap/parcel_control.h"
#include "bootstrap/worker_info.h"
#include "common/random.h"
#include "common/result.h"
#include "http/client.h"
#include "http/deadlines.h"
#include "http/url.h"

namespace kvferry::bootstrap {

using Workers = std::vector<Registration>;

// Values under keys, each until its time is over, at most `limit` of them (I6).
template <class Value>
class TimedCache {
 public:
  explicit TimedCache(size_t limit) : limit_(limit) {}

  std::shared_ptr<const Value> get(const std::string& key, TimePoint now) const {
    const auto found = items_.find(key);
    return found != items_.end() && found->second.until > now ? found->second.value : nullptr;
  }
  // Also one whose time is over.
  std::shared_ptr<const Value> last(const std::string& key) const {
    const auto found = items_.find(key);
    return found != items_.end() ? found->second.value : nullptr;
  }
  void put(const std::string& key, std::shared_ptr<const Value> value, TimePoint until) {
    if (limit_ == 0) return;
    if (items_.size() >= limit_ && !items_.contains(key)) {
      items_.erase(std::min_element(items_.begin(), items_.end(), [](const auto& left, const auto& right) {
        return left.second.until < right.second.until;
      }));
    }
    items_.insert_or_assign(key, Item{std::move(value), until});
  }
  void erase(const std::string& key) { items_.erase(key); }
  template <class Predicate>
  void erase_if(Predicate predicate) {
    std::erase_if(items_, [&](const auto& item) { return predicate(*item.second.value); });
  }

 private:
  struct Item {
    std::shared_ptr<const Value> value;
    TimePoint until{};
  };
  const size_t limit_;
  std::map<std::string, Item> items_;
};

// Asks bootstrap servers, kvferry's or vLLM's own. Answers are kept as long as the server allows; requests that fail
// for a reason that may pass are tried again, with jitter, until the timeout. Everything happens on the loop.
class Client {
 public:
  struct Config {
    std::string token;                           // for release
    Duration timeout = std::chrono::seconds(5);  // of a call, all tries together
    Duration attempt = std::chrono::seconds(1);  // of one try
    // Of one release: longer than the server waits for all ranks (ServerSettings::release_limit).
    Duration release_attempt = std::chrono::seconds(2);
    Duration first_retry = std::chrono::milliseconds(25);
    Duration longest_retry = std::chrono::milliseconds(500);
    Duration fallback_ttl = std::chrono::milliseconds(500);  // where the server names none (vLLM's)
    size_t max_cached = 1024;                                // answers of each kind
    size_t max_answer_bytes = 64 << 20;                      // 65536 workers of at most 1 KiB
    std::shared_ptr<http::TlsContext> trust;                 // for https
  };
  Client(boost::asio::io_context& loop, http::Deadlines& deadlines, Random& random, Config config)
      : loop_(loop),
        deadlines_(deadlines),
        random_(random),
        config_(std::move(config)),
        workers_(config_.max_cached),
        infos_(config_.max_cached) {}

  // Who is registered in a namespace. `base`: of the server, with the namespace as its path. From vLLM's own server the
  // workers come without `http` and incarnation.
  boost::asio::awaitable<Result<std::shared_ptr<const Workers>>> workers(http::Url base);

  // What a worker's own server says of it.
  boost::asio::awaitable<Result<std::shared_ptr<const WorkerInfo>>> worker(http::Url server);

  // `pending`: some rank has not acknowledged, ask again. Error not_found: this server keeps no parcels (vLLM's own).
  boost::asio::awaitable<Result<ReleaseState>> release(http::Url base, std::string transfer_id, bool force);

  // Tells what a session's hello has shown: who is remembered otherwise is forgotten, so that the next call asks.
  void saw(const std::string& engine_id, const std::string& address, uint64_t incarnation);
  // The next workers(base) asks.
  void forget(const http::Url& base) { workers_.erase(base.to_string()); }

  uint64_t requests() const { return requests_; }

 private:
  // Repeats until there is an answer that trying again cannot change.
  boost::asio::awaitable<Result<http::Fetched>> ask(http::Fetch fetch, Duration attempt);
  TimePoint keep_until(const http::ResponseHead& head) const;
  void forget_changed(const Workers& before, const Workers& now);

  boost::asio::io_context& loop_;
  http::Deadlines& deadlines_;
  Random& random_;
  const Config config_;
  TimedCache<Workers> workers_;
  TimedCache<WorkerInfo> infos_;
  uint64_t requests_ = 0;
};

}  // namespace kvferry::bootstrap
