#include "sim/owners.h"

#include <fmt/format.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace kvferry::sim {
namespace {

namespace asio = boost::asio;

constexpr Duration kPause = std::chrono::milliseconds(50);
constexpr std::string_view kScheme = "tcp://";

Error not_there(ErrorCode code, const std::string& instance, std::string cause) {
  return {code, "cannot find the prefiller " + instance, std::move(cause), "", "sim"};
}

// Asking again can help.
bool may_pass(const Error& error) {
  return error.code == ErrorCode::unavailable || error.code == ErrorCode::peer_lost ||
         error.code == ErrorCode::deadline_exceeded;
}

bootstrap::Client::Config client_config() {
  bootstrap::Client::Config config;
  config.timeout = std::chrono::seconds(1);
  return config;
}

}  // namespace

OwnerFinder::OwnerFinder(asio::io_context& loop, http::Deadlines& deadlines, Random& random)
    : loop_(loop), deadlines_(deadlines), client_(loop, deadlines, random, client_config()) {}

asio::awaitable<Result<std::shared_ptr<const Owners>>> OwnerFinder::find(TransferRef from, TimePoint deadline) {
  if (const auto known = known_.find(from.remote_engine_id); known != known_.end()) co_return known->second;
  const auto base = http::parse_url(from.remote_bootstrap_addr);
  if (!base.ok()) co_return base.error();
  for (;;) {
    client_.forget(*base);  // the directory that is kept may be older than this instance
    auto asked = co_await ask(*base, from.remote_engine_id);
    if (asked.ok()) keep(from.remote_engine_id, *asked);
    if (asked.ok() || !may_pass(asked.error()) || after(deadlines_.now(), kPause) >= deadline) co_return asked;
    asio::steady_timer timer(loop_, kPause);
    co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
  }
}

asio::awaitable<Result<std::shared_ptr<const Owners>>> OwnerFinder::ask(const http::Url& base,
                                                                        const std::string& instance) {
  auto workers = co_await client_.workers(base);
  if (!workers.ok()) co_return workers.error();
  auto owners = std::make_shared<Owners>();
  std::string http;
  for (const bootstrap::Registration& worker : **workers) {
    if (worker.engine_id != instance || !worker.addr.starts_with(kScheme)) continue;
    owners->addresses[{worker.rank.pp, worker.rank.tp}] = worker.addr.substr(kScheme.size());
    http = worker.http;
  }
  if (owners->addresses.empty()) {
    // An empty directory has been restarted, and its workers are on their way; others mean that this one is gone.
    const bool others = !(*workers)->empty();
    co_return not_there(others ? ErrorCode::gone : ErrorCode::unavailable, instance,
                        others ? "another instance is registered there" : "nobody is registered there");
  }
  const auto url = http::parse_url(http);
  if (!url.ok()) co_return not_there(ErrorCode::unsupported, instance, "its workers have no bootstrap server");
  auto info = co_await client_.worker(*url);
  if (!info.ok()) co_return info.error();
  owners->tp_size = (*info)->rank.tp_size;
  owners->pp_size = (*info)->rank.pp_size;
  if (owners->addresses.size() != size_t{owners->tp_size} * owners->pp_size) {
    co_return not_there(
        ErrorCode::unavailable, instance,
        fmt::format("{} of its {} ranks are registered", owners->addresses.size(), owners->tp_size * owners->pp_size));
  }
  co_return owners;
}

void OwnerFinder::keep(const std::string& instance, std::shared_ptr<const Owners> owners) {
  if (!known_.insert_or_assign(instance, std::move(owners)).second) return;
  order_.push_back(instance);
  if (order_.size() <= kKept) return;
  known_.erase(order_.front());
  order_.pop_front();
}

}  // namespace kvferry::sim
