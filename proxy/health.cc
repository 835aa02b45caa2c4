#include "proxy/health.h"

#include <utility>

#include "http/client.h"

namespace kvferry::proxy {
namespace {

namespace asio = boost::asio;
constexpr Duration kProbeTimeout = std::chrono::seconds(2);

}  // namespace

void Health::watch(std::shared_ptr<Backend> backend) {
  background_.run(run(std::move(backend)));
}

asio::awaitable<void> Health::run(std::shared_ptr<Backend> backend) {
  while (!stopped_ && !backend->removed) {
    co_await probe(backend);
    const bool going_on = co_await background_.sleep(interval_);
    if (!going_on) break;
  }
}

asio::awaitable<void> Health::probe(std::shared_ptr<Backend> backend) {
  http::Fetch fetch;
  fetch.url = backend->url;
  fetch.target = "/health";
  fetch.timeout = kProbeTimeout;
  const auto answer = co_await http::fetch(loop_, deadlines_, std::move(fetch));
  const bool good = answer.ok() && answer->head.status == 200;
  // A network that loses packets makes one probe late, not a second one.
  const bool late = !answer.ok() && answer.error().code == ErrorCode::deadline_exceeded;
  if (!late || std::exchange(backend->probe_late, true)) judge(*backend, good);
  if (!late) backend->probe_late = false;
  if (!good) backend->suspect = true;
  if (good && backend->bootstrap) co_await refresh(backend);
}

void Health::judge(Backend& backend, bool good) {
  const bool was = backend.healthy;
  backend.healthy = good;
  if (was == good && backend.probed) {
    // A backend whose requests fail although it looks well stays with its breaker; one that was refused is back.
    if (good && backend.breaker.state(deadlines_.now()) == Breaker::State::half_open) backend.breaker.succeeded();
    return;
  }
  if (good && !was) {
    backend.breaker.succeeded();
    backend.up_since = deadlines_.now();
    log_->info("{} {} is up", to_string(backend.role), backend.name);
  }
  if (!good) log_->warning("{} {} is down", to_string(backend.role), backend.name);
  backend.probed = true;
}

void Health::learn(Backend& backend, const bootstrap::Workers& workers) {
  std::map<int, std::string> ids;
  bool kvferry = false;
  for (const bootstrap::Registration& worker : workers) {
    ids.emplace(static_cast<int>(worker.rank.dp), worker.engine_id);
    kvferry = kvferry || !worker.http.empty();
  }
  if (ids == backend.engine_ids) return;
  for (const auto& [rank, id] : ids) {
    log_->info("prefill {} dp rank {} is engine {}", backend.name, rank, id);
  }
  backend.engine_ids = std::move(ids);
  // Workers with a server of their own keep parcels; others have to be asked once.
  backend.release_face = kvferry ? ReleaseFace::parcels : ReleaseFace::unknown;
}

asio::awaitable<bool> Health::refresh(std::shared_ptr<Backend> backend) {
  if (!backend->bootstrap) co_return true;
  // A query that is under way may have been answered before what its joiner has just seen.
  const uint64_t begun = backend->queries;
  while (backend->asking) {
    const auto answered = backend->askers.emplace_back(std::make_shared<http::Event>());
    co_await answered->wait();
  }
  if (backend->queries > begun) co_return !backend->suspect;
  ++backend->queries;
  backend->asking = true;
  bootstrap_.forget(*backend->bootstrap);
  const auto workers = co_await bootstrap_.workers(*backend->bootstrap);
  backend->asking = false;
  if (workers.ok() && !(*workers)->empty()) {
    backend->suspect = false;
    learn(*backend, **workers);
  } else {
    backend->suspect = true;
    if (!workers.ok()) log_->debug("query of {} failed: {}", backend->name, workers.error().to_string());
  }
  const bool known = !backend->suspect;
  const auto askers = std::move(backend->askers);
  backend->askers.clear();
  for (const auto& asker : askers) asker->set();
  co_return known;
}

}  // namespace kvferry::proxy
