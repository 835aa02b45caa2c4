#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/clock.h"
#include "common/result.h"
#include "http/event.h"
#include "http/url.h"
#include "proxy/breaker.h"
#include "proxy/route.h"

namespace kvferry::proxy {

std::string_view to_string(Role role);

// Whether the prefiller's bootstrap server can release parcels by DELETE: learnt from its answers.
enum class ReleaseFace { unknown, parcels, none };

// One vLLM server. Lives as long as a request, probe or release uses it, even after its removal. On the loop.
struct Backend {
  uint64_t id = 0;
  Role role = Role::decode;
  http::Url url;
  std::optional<http::Url> bootstrap;
  std::string name;  // host:port, for logs and metrics

  bool probe_late = false;  // the last probe ended at its deadline
  bool healthy = true;      // the last probe; innocent until probed
  bool probed = false;
  bool draining = false;
  bool removed = false;
  Breaker breaker;
  TimePoint up_since{};  // of its slow start; zero: never seen down

  double tokens_in_flight = 0;
  size_t requests = 0;  // in flight, of any kind
  size_t streams = 0;   // answers being relayed
  size_t parcels = 0;   // pinned here

  std::map<int, std::string> engine_ids;  // by dp rank, from the bootstrap server
  ReleaseFace release_face = ReleaseFace::unknown;
  bool suspect = true;  // its engine ids may be out of date: ask before the next hand-over
  bool asking = false;
  uint64_t queries = 0;                              // begun
  std::vector<std::shared_ptr<http::Event>> askers;  // wait for the answer in progress

  bool usable(TimePoint now) const { return healthy && !draining && !removed && breaker.allows(now); }
  // 0.1 just after it came up, 1 after `span`.
  double weight(TimePoint now, Duration span) const;
};

// Counts a request against a backend for as long as it runs there.
class Busy {
 public:
  Busy(std::shared_ptr<Backend> backend, double tokens, bool stream)
      : backend_(std::move(backend)), tokens_(tokens), stream_(stream ? 1 : 0) {
    ++backend_->requests;
    backend_->tokens_in_flight += tokens_;
    backend_->streams += stream_;
  }
  ~Busy() {
    --backend_->requests;
    backend_->tokens_in_flight = std::max(0.0, backend_->tokens_in_flight - tokens_);
    backend_->streams -= stream_;
  }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  const std::shared_ptr<Backend> backend_;
  const double tokens_;
  const size_t stream_;
};

// All backends, by role. On the loop.
class Backends {
 public:
  // Fails if the role already has one at this address.
  Result<std::shared_ptr<Backend>> add(Role role, http::Url url, std::optional<http::Url> bootstrap);
  // Forgets it; what uses it may finish.
  Status remove(Role role, const http::Url& url);
  Status drain(Role role, const http::Url& url, bool on);

  const std::vector<std::shared_ptr<Backend>>& of(Role role) const;
  bool any_usable(Role role, TimePoint now) const;

 private:
  std::shared_ptr<Backend> find(Role role, const http::Url& url) const;
  std::vector<std::shared_ptr<Backend>>& list(Role role);

  std::vector<std::shared_ptr<Backend>> prefill_;
  std::vector<std::shared_ptr<Backend>> decode_;
  uint64_t next_id_ = 1;
};

// A backend's place for one request.
struct Choice {
  std::shared_ptr<Backend> backend;
  int dp_rank = 0;
  double tokens = 0;  // uncached, estimated
};

// Turns the table into candidates for proxy/route.h and remembers which prompts went where.
class Router {
 public:
  Router(Backends& backends, Policy policy, size_t prefix_entries, Duration slow_start)
      : backends_(backends), policy_(policy), slow_start_(slow_start), seen_(prefix_entries) {}

  struct Question {
    std::string_view prompt;
    std::string_view session;
    TimePoint now{};
    const Backend* avoid = nullptr;  // just failed: only if there is no other
  };
  std::optional<Choice> choose(Role role, const Question& question);
  void forget(const Backend& backend);

 private:
  struct Place {
    const std::shared_ptr<Backend>* backend;
    int dp_rank;
  };
  void list(Role role, TimePoint now);

  Backends& backends_;
  std::vector<Candidate> candidates_;  // of the choice being made
  std::vector<Place> places_;          // theirs
  const Policy policy_;
  const Duration slow_start_;
  PrefixIndex seen_;
  uint64_t ordinals_[2] = {0, 0};  // by role
};

}  // namespace kvferry::proxy
