#include "proxy/backends.h"

#include <algorithm>

namespace kvferry::proxy {
namespace {

uint64_t candidate_key(const Backend& backend, int dp_rank) {
  return stable_hash(backend.name, stable_hash(to_string(backend.role), static_cast<uint64_t>(dp_rank)));
}

Error no_backend(Role role, const http::Url& url) {
  return {ErrorCode::not_found, "no such " + std::string(to_string(role)) + " backend", "", url.authority(), ""};
}

}  // namespace

std::string_view to_string(Role role) {
  return role == Role::prefill ? "prefill" : "decode";
}

double Backend::weight(TimePoint now, Duration span) const {
  if (up_since == TimePoint{} || span <= Duration(0)) return 1;
  return std::clamp(seconds(now - up_since) / seconds(span), 0.1, 1.0);
}

std::vector<std::shared_ptr<Backend>>& Backends::list(Role role) {
  return role == Role::prefill ? prefill_ : decode_;
}

const std::vector<std::shared_ptr<Backend>>& Backends::of(Role role) const {
  return role == Role::prefill ? prefill_ : decode_;
}

std::shared_ptr<Backend> Backends::find(Role role, const http::Url& url) const {
  for (const auto& backend : of(role)) {
    if (backend->name == url.authority()) return backend;
  }
  return nullptr;
}

Result<std::shared_ptr<Backend>> Backends::add(Role role, http::Url url, std::optional<http::Url> bootstrap) {
  if (find(role, url)) return Error{ErrorCode::already_exists, "the backend is there already", "", url.authority(), ""};
  auto backend = std::make_shared<Backend>();
  backend->id = next_id_++;
  backend->role = role;
  backend->name = url.authority();
  backend->url = std::move(url);
  backend->bootstrap = std::move(bootstrap);
  list(role).push_back(backend);
  return backend;
}

Status Backends::remove(Role role, const http::Url& url) {
  const auto backend = find(role, url);
  if (!backend) return no_backend(role, url);
  backend->removed = true;
  std::erase(list(role), backend);
  return {};
}

Status Backends::drain(Role role, const http::Url& url, bool on) {
  const auto backend = find(role, url);
  if (!backend) return no_backend(role, url);
  backend->draining = on;
  return {};
}

bool Backends::any_usable(Role role, TimePoint now) const {
  return std::any_of(of(role).begin(), of(role).end(), [&](const auto& backend) { return backend->usable(now); });
}

void Router::list(Role role, TimePoint now) {
  candidates_.clear();
  places_.clear();
  const auto add = [&](const std::shared_ptr<Backend>& backend, int rank) {
    Candidate& candidate = candidates_.emplace_back();
    candidate.key = candidate_key(*backend, rank);
    candidate.usable = backend->usable(now);
    candidate.weight = backend->weight(now, slow_start_);
    candidate.load = role == Role::prefill ? prefill_load(backend->tokens_in_flight, backend->parcels)
                                           : decode_load(backend->streams, backend->tokens_in_flight);
    places_.push_back({&backend, rank});
  };
  for (const auto& backend : backends_.of(role)) {
    for (const auto& [rank, engine] : backend->engine_ids) add(backend, rank);
    if (backend->engine_ids.empty()) add(backend, 0);
  }
}

std::optional<Choice> Router::choose(Role role, const Question& question) {
  list(role, question.now);
  const auto avoided = [&](size_t i) { return places_[i].backend->get() == question.avoid; };
  bool other = false;
  for (size_t i = 0; i < candidates_.size(); ++i) other = other || (candidates_[i].usable && !avoided(i));
  for (size_t i = 0; i < candidates_.size(); ++i) {
    if (other && avoided(i)) candidates_[i].usable = false;
  }
  if (policy_ == Policy::prefix) {
    const auto shares = seen_.shares(question.prompt, candidates_);
    for (size_t i = 0; i < candidates_.size(); ++i) candidates_[i].cached_share = shares[i];
  }
  uint64_t& ordinal = ordinals_[role == Role::prefill ? 0 : 1];
  const auto index = proxy::choose(policy_, candidates_, {ordinal++, question.session});
  if (!index) return std::nullopt;
  if (policy_ == Policy::prefix) seen_.remember(question.prompt, candidates_[*index].key);
  return Choice{*places_[*index].backend, places_[*index].dp_rank,
                uncached_tokens(question.prompt.size(), candidates_[*index].cached_share)};
}

void Router::forget(const Backend& backend) {
  seen_.forget(candidate_key(backend, 0));
  for (const auto& [rank, engine] : backend.engine_ids) seen_.forget(candidate_key(backend, rank));
}

}  // namespace kvferry::proxy
