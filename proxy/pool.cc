#include "proxy/pool.h"

namespace kvferry::proxy {
namespace {

constexpr Duration kPruneEvery = std::chrono::milliseconds(500);

}  // namespace

Pool::Pool(boost::asio::io_context& loop, http::Deadlines& deadlines, Limits limits)
    : loop_(loop), deadlines_(deadlines), limits_(limits), pruning_(deadlines, [this] { prune(); }) {}

boost::asio::awaitable<Result<Pool::Lease>> Pool::take(Backend& backend, bool fresh) {
  auto& kept = idle_[backend.id];
  const TimePoint oldest = deadlines_.now() - limits_.idle;
  while (!fresh && !kept.empty()) {
    Kept last = std::move(kept.back());
    kept.pop_back();
    if (last.since < oldest) continue;
    if (last.connection->reusable()) co_return Lease{std::move(last.connection), true};
    // Closed by the backend before its time: it may have been restarted.
    backend.suspect = true;
  }
  auto opened = co_await http::ClientConnection::connect(loop_, deadlines_, backend.url, limits_.connect_timeout);
  if (!opened.ok()) co_return opened.error();
  co_return Lease{std::move(*opened), false};
}

void Pool::give_back(const Backend& backend, std::unique_ptr<http::ClientConnection> connection) {
  connection->set_deadline(kNever);
  if (backend.removed || !connection->reusable()) return;
  auto& kept = idle_[backend.id];
  kept.push_back({std::move(connection), deadlines_.now()});
  if (kept.size() > limits_.max_idle) kept.pop_front();
  if (!pruning_.armed()) pruning_.set_in(kPruneEvery);
}

void Pool::prune() {
  const TimePoint oldest = deadlines_.now() - limits_.idle;
  bool any = false;
  for (auto& [id, kept] : idle_) {
    while (!kept.empty() && kept.front().since < oldest) kept.pop_front();
    any = any || !kept.empty();
  }
  if (any) pruning_.set_in(kPruneEvery);
}

size_t Pool::idle() const {
  size_t count = 0;
  for (const auto& [id, kept] : idle_) count += kept.size();
  return count;
}

}  // namespace kvferry::proxy
