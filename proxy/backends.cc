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

std::optional<Choice> Router::choose(Role role, const Question& question) {
  std::vector<Candidate> candidates;
  std::vector<Choice> choices;
  for (const auto& backend : backends_.of(role)) {
    std::vector<int> ranks;
    for (const auto& [rank, engine] : backend->engine_ids) ranks.push_back(rank);
    if (ranks.empty()) ranks.push_back(0);
    for (const int rank : ranks) {
      Candidate candidate;
      candidate.key = candidate_key(*backend, rank);
      candidate.usable = backend->usable(question.now);
      candidate.weight = backend->weight(question.now, slow_start_);
      candidate.load = role == Role::prefill ? prefill_load(backend->tokens_in_flight, backend->parcels)
                                             : decode_load(backend->streams, backend->tokens_in_flight);
      candidates.push_back(candidate);
      choices.push_back({backend, rank, 0});
    }
  }
  const auto avoided = [&](size_t i) { return choices[i].backend.get() == question.avoid; };
  bool other = false;
  for (size_t i = 0; i < candidates.size(); ++i) other = other || (candidates[i].usable && !avoided(i));
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (other && avoided(i)) candidates[i].usable = false;
  }
  if (policy_ == Policy::prefix) {
    const auto shares = seen_.shares(question.prompt, candidates);
    for (size_t i = 0; i < candidates.size(); ++i) candidates[i].cached_share = shares[i];
  }
  uint64_t& ordinal = ordinals_[role == Role::prefill ? 0 : 1];
  const auto index = proxy::choose(policy_, candidates, {ordinal++, question.session});
  if (!index) return std::nullopt;
  if (policy_ == Policy::prefix) seen_.remember(question.prompt, candidates[*index].key);
  Choice choice = choices[*index];
  choice.tokens = uncached_tokens(question.prompt.size(), candidates[*index].cached_share);
  return choice;
}

void Router::forget(const Backend& backend) {
  seen_.forget(candidate_key(backend, 0));
  for (const auto& [rank, engine] : backend.engine_ids) seen_.forget(candidate_key(backend, rank));
}

}  // namespace kvferry::proxy
