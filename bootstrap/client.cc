#include "bootstrap/client.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <charconv>

#include "bootstrap/backoff.h"
#include "bootstrap/bodies.h"
#include "bootstrap/paths.h"

namespace kvferry::bootstrap {
namespace {

namespace asio = boost::asio;

constexpr Duration kLongestTtl = std::chrono::seconds(60);

bool worth_another_try(const Result<http::Fetched>& answer) {
  if (answer.ok()) return answer->head.status >= 500 || answer->head.status == 429 || answer->head.status == 408;
  const ErrorCode code = answer.error().code;
  return code == ErrorCode::unavailable || code == ErrorCode::peer_lost || code == ErrorCode::deadline_exceeded;
}

Error unexpected(const http::Url& server, int status) {
  const ErrorCode code = status == 404 || status == 405   ? ErrorCode::not_found
                         : status == 401 || status == 403 ? ErrorCode::permission_denied
                         : status >= 500                  ? ErrorCode::unavailable
                                                          : ErrorCode::protocol;
  return {code, "the bootstrap server answered " + std::to_string(status), "", server.authority(), "bootstrap"};
}

Error unreadable(Error error, const http::Url& server) {
  error.code = ErrorCode::protocol;
  error.peer = server.authority();
  return error;
}

}  // namespace

asio::awaitable<Result<http::Fetched>> Client::ask(http::Fetch fetch, Duration attempt) {
  const TimePoint deadline = after(deadlines_.now(), config_.timeout);
  Backoff backoff(config_.first_retry, config_.longest_retry, random_);
  fetch.max_body_bytes = config_.max_answer_bytes;
  fetch.trust = config_.trust;
  for (;;) {
    fetch.timeout = std::min(attempt, deadline - deadlines_.now());
    ++requests_;
    http::Fetch once = fetch;
    auto answer = co_await http::fetch(loop_, deadlines_, std::move(once));
    if (!worth_another_try(answer)) co_return answer;
    const Duration pause = backoff.next();
    if (after(deadlines_.now(), pause) >= deadline) co_return answer;
    asio::steady_timer timer(loop_, pause);
    co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
  }
}

TimePoint Client::keep_until(const http::ResponseHead& head) const {
  Duration ttl = config_.fallback_ttl;
  if (const auto told = head.headers.get("kvferry-ttl-ms")) {
    int64_t milliseconds = 0;
    const auto read = std::from_chars(told->data(), told->data() + told->size(), milliseconds);
    if (read.ec == std::errc() && milliseconds >= 0 && milliseconds < kLongestTtl / std::chrono::milliseconds(1)) {
      ttl = std::chrono::milliseconds(milliseconds);
    }
  }
  return after(deadlines_.now(), ttl);
}

asio::awaitable<Result<std::shared_ptr<const Workers>>> Client::workers(http::Url base) {
  const std::string key = base.to_string();
  if (auto known = workers_.get(key, deadlines_.now())) co_return known;
  http::Fetch fetch;
  fetch.url = base;
  fetch.target = "/v1/workers";
  auto answer = co_await ask(fetch, config_.attempt);
  if (!answer.ok()) co_return answer.error();
  const bool ours = answer->head.status != 404;
  if (!ours) {
    fetch.target = "/query";
    answer = co_await ask(fetch, config_.attempt);
    if (!answer.ok()) co_return answer.error();
  }
  if (answer->head.status != 200) co_return unexpected(base, answer->head.status);
  auto parsed = ours ? parse_workers(answer->body) : parse_query(answer->body);
  if (!parsed.ok()) co_return unreadable(parsed.error(), base);
  auto workers = std::make_shared<const Workers>(std::move(*parsed));
  if (const auto before = workers_.last(key)) forget_changed(*before, *workers);
  workers_.put(key, workers, keep_until(answer->head));
  co_return workers;
}

asio::awaitable<Result<std::shared_ptr<const WorkerInfo>>> Client::worker(http::Url server) {
  const std::string key = server.to_string();
  if (auto known = infos_.get(key, deadlines_.now())) co_return known;
  http::Fetch fetch;
  fetch.url = server;
  fetch.target = "/v1/worker";
  fetch.headers.add("Accept", kProtobufType);
  const auto answer = co_await ask(std::move(fetch), config_.attempt);
  if (!answer.ok()) co_return answer.error();
  if (answer->head.status != 200) co_return unexpected(server, answer->head.status);
  auto parsed = parse_worker(answer->body);
  if (!parsed.ok()) co_return unreadable(parsed.error(), server);
  auto info = std::make_shared<const WorkerInfo>(std::move(*parsed));
  infos_.put(key, info, keep_until(answer->head));
  co_return info;
}

asio::awaitable<Result<ReleaseState>> Client::release(http::Url base, std::string transfer_id, bool force) {
  http::Fetch fetch;
  fetch.method = "DELETE";
  fetch.url = base;
  fetch.target = "/v1/parcels/" + percent_encode(transfer_id) + (force ? "?force=1" : "");
  if (!config_.token.empty()) fetch.headers.add("Authorization", "Bearer " + config_.token);
  const auto answer = co_await ask(std::move(fetch), config_.release_attempt);
  if (!answer.ok()) co_return answer.error();
  switch (answer->head.status) {
    case 200:
    case 204:
      co_return ReleaseState::acknowledged;
    case 202:
      co_return ReleaseState::pending;
    default:
      co_return unexpected(base, answer->head.status);
  }
}

void Client::saw(const std::string& engine_id, const std::string& address, uint64_t incarnation) {
  infos_.erase_if([&](const WorkerInfo& info) {
    const bool meant = info.engine_id == engine_id || info.address == address;
    return meant && (info.engine_id != engine_id || info.incarnation != incarnation);
  });
  const std::string addr = "tcp://" + address;
  workers_.erase_if([&](const Workers& workers) {
    return std::any_of(workers.begin(), workers.end(), [&](const Registration& worker) {
      return worker.addr == addr && worker.incarnation != 0 && worker.incarnation != incarnation;
    });
  });
}

// What a worker said of itself is not kept beyond its process.
void Client::forget_changed(const Workers& before, const Workers& now) {
  for (const Registration& old : before) {
    const bool lives = std::any_of(now.begin(), now.end(), [&](const Registration& worker) {
      return worker.http == old.http && worker.engine_id == old.engine_id && worker.incarnation == old.incarnation;
    });
    if (!lives && !old.http.empty()) infos_.erase(old.http);
  }
}

}  // namespace kvferry::bootstrap
