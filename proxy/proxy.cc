#include "proxy/proxy.h"

#include <sys/resource.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "proxy/core.h"

namespace kvferry::proxy {
namespace {

namespace asio = boost::asio;

constexpr size_t kSpareDescriptors = 200;  // listeners, probes, releases, logs
constexpr Duration kDrainPoll = std::chrono::milliseconds(20);
constexpr Duration kReleaseGrace = std::chrono::seconds(5);
constexpr Duration kRunOut = std::chrono::seconds(60);  // of requests that were told to end

// A client's connection takes one to a backend along.
size_t connection_limit(const ProxyConfig& config) {
  if (config.max_connections > 0) return config.max_connections;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 1000;
  const auto descriptors = static_cast<size_t>(std::min<rlim_t>(limit.rlim_cur, 1 << 20));
  return std::max<size_t>((descriptors - std::min(descriptors, kSpareDescriptors)) / 2, 16);
}

http::ServerConfig front_config(const ProxyConfig& config, std::shared_ptr<Logger> log) {
  http::ServerConfig server;
  server.host = config.host;
  server.port = config.port;
  server.max_connections = connection_limit(config);
  server.max_connections_per_address = config.max_per_address;
  server.max_head_bytes = config.max_head;
  server.max_body_bytes = config.max_body;
  server.max_bodies_bytes = config.max_bodies;
  server.idle_timeout = config.client_idle;
  server.write_timeout = config.client_stall;
  server.certificate_file = config.tls_certificate;
  server.key_file = config.tls_key;
  server.logger = std::move(log);
  return server;
}

// Short: health asks again at its next interval, and releases repeat themselves.
bootstrap::Client::Config bootstrap_config(const ProxyConfig& config, std::shared_ptr<http::TlsContext> trust) {
  bootstrap::Client::Config client;
  client.token = config.bootstrap_token.empty() ? config.api_key : config.bootstrap_token;
  client.timeout = std::chrono::seconds(2);
  client.trust = std::move(trust);
  return client;
}

}  // namespace

Proxy::Core::Core(asio::io_context& loop_in, http::Deadlines& deadlines_in, Random& random_in,
                  std::shared_ptr<Logger> log_in, ProxyConfig config_in, std::unique_ptr<AccessLog> access_log_in,
                  std::shared_ptr<http::TlsContext> trust)
    : loop(loop_in),
      deadlines(deadlines_in),
      random(random_in),
      log(std::move(log_in)),
      config(std::move(config_in)),
      router(backends, config.policy, config.prefix_entries, config.slow_start),
      pool(loop, deadlines, {config.upstream_idle, config.connect_timeout, 512}),
      bootstrap(loop, deadlines, random, bootstrap_config(config, std::move(trust))),
      background(loop),
      health_watch(loop, background, deadlines, bootstrap, log, config.health_interval),
      releases(loop, background, deadlines, backends, bootstrap, log, {config.dialect, config.lease, config.api_key}),
      access_log(std::move(access_log_in)),
      admission(loop, deadlines, metrics, {config.max_concurrent, config.max_queue, config.queue_timeout}),
      context{loop, config,       deadlines, random,  scanner,     backends, router,
              pool, health_watch, releases,  metrics, *access_log, *log} {
  metrics.registry.on_collect([this] { publish_gauges(); });
}

Status Proxy::Core::add_backend(Role role, http::Url url, std::optional<uint16_t> bootstrap_port) {
  std::optional<http::Url> bootstrap_url;
  if (bootstrap_port) {
    bootstrap_url = url;
    bootstrap_url->port = *bootstrap_port;
    bootstrap_url->path.clear();
    bootstrap_url->secure = !config.bootstrap_ca.empty();
  }
  KVF_ASSIGN_OR_RETURN(auto backend, backends.add(role, std::move(url), std::move(bootstrap_url)));
  health_watch.watch(std::move(backend));
  return {};
}

Status Proxy::Core::listen() {
  for (const PrefillAddress& address : config.prefill) {
    KVF_RETURN_IF_ERROR(add_backend(Role::prefill, address.url, address.bootstrap_port));
  }
  for (const http::Url& url : config.decode) KVF_RETURN_IF_ERROR(add_backend(Role::decode, url, std::nullopt));
  const auto handler = [this](http::Request& request, http::ResponseWriter& writer) {
    return forward(request, writer);
  };
  const auto at_head = [this](const http::RequestHead& request) { return answer_from_head(request); };
  KVF_ASSIGN_OR_RETURN(front, http::Server::create(loop, deadlines, front_config(config, log), handler, at_head));
  if (config.admin_port < 0) return {};
  http::ServerConfig server;
  server.host = config.admin_host;
  server.port = static_cast<uint16_t>(config.admin_port);
  server.max_connections = 64;
  server.max_body_bytes = 1 << 20;
  if (config.admin_tls) {
    server.certificate_file = config.tls_certificate;
    server.key_file = config.tls_key;
    server.logger = log;
  }
  KVF_ASSIGN_OR_RETURN(admin, http::Server::create(loop, deadlines, std::move(server),
                                                   [this](http::Request& request, http::ResponseWriter& writer) {
                                                     return serve_admin(request, writer);
                                                   }));
  return {};
}

void Proxy::Core::publish_gauges() {
  MetricsRegistry& registry = metrics.registry;
  const ReleaseCounts parcels = releases.counts();
  const auto set = [&](const char* name, const char* help, int64_t value, const Labels& labels = {}) {
    registry.gauge(name, help, labels).set(value);
  };
  set("kvferry_proxy_parcels_pinned", "Parcels held at prefillers for requests of this proxy",
      static_cast<int64_t>(parcels.pinned));
  set("kvferry_proxy_parcels_releasing", "Releases not yet acknowledged", static_cast<int64_t>(parcels.releasing));
  set("kvferry_proxy_parcel_oldest_milliseconds", "Age of the oldest pinned parcel",
      std::chrono::duration_cast<std::chrono::milliseconds>(parcels.oldest).count());
  set("kvferry_proxy_parcels_released", "Releases acknowledged since the start",
      static_cast<int64_t>(parcels.released));
  set("kvferry_proxy_parcels_given_up", "Parcels whose lease ended before a release was acknowledged",
      static_cast<int64_t>(parcels.given_up));
  set("kvferry_proxy_upstream_idle", "Kept connections to backends", static_cast<int64_t>(pool.idle()));
  if (front) {
    const http::ServerCounts counts = front->counts();
    set("kvferry_proxy_connections", "Client connections", static_cast<int64_t>(counts.open));
    set("kvferry_proxy_body_bytes", "Bodies of requests not yet answered", static_cast<int64_t>(counts.body_bytes));
    set("kvferry_proxy_connections_refused", "Clients refused over a limit", static_cast<int64_t>(counts.refused));
  }
  const TimePoint now = deadlines.now();
  for (const Role role : {Role::prefill, Role::decode}) {
    for (const auto& backend : backends.of(role)) {
      const Labels labels{{"role", std::string(to_string(role))}, {"backend", backend->name}};
      set("kvferry_proxy_backend_usable", "1 if requests may go there", backend->usable(now) ? 1 : 0, labels);
      set("kvferry_proxy_backend_breaker", "0 closed, 1 half open, 2 open",
          static_cast<int64_t>(backend->breaker.state(now)), labels);
      set("kvferry_proxy_backend_requests", "Requests there now", static_cast<int64_t>(backend->requests), labels);
      set("kvferry_proxy_backend_parcels", "Parcels pinned there", static_cast<int64_t>(backend->parcels), labels);
    }
  }
}

// Runs after everything was told to end; touches nothing after `done`, or when the proxy goes first.
asio::awaitable<void> Proxy::Core::finish(std::function<void()> done) {
  asio::steady_timer timer(loop);
  const std::weak_ptr<bool> here = alive;
  const auto wait_while = [&](auto busy, TimePoint until) -> asio::awaitable<void> {
    while (!here.expired() && busy() && deadlines.now() < until) {
      timer.expires_after(kDrainPoll);
      co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
    }
  };
  const auto serving = [this] { return admission.running() > 0; };
  co_await wait_while(serving, after(deadlines.now(), config.drain_limit));
  if (here.expired()) co_return;
  front->close();
  if (end_canary) end_canary();
  const TimePoint grace = after(deadlines.now(), kReleaseGrace);
  co_await wait_while([this] { return admission.running() > 0 || releases.counts().releasing > 0; }, grace);
  if (here.expired()) co_return;
  const ReleaseCounts left = releases.counts();
  log->info("drained: {} parcels still pinned", left.pinned);
  access_log->flush();
  done();
}

Proxy::Proxy(std::unique_ptr<Core> core) : core_(std::move(core)) {}

// Requests and what runs beside them refer to the parts of this: all are told, and let run out before those go.
Proxy::~Proxy() {
  core_->draining = true;
  if (core_->front) core_->front->close();
  if (core_->end_canary) core_->end_canary();
  if (core_->admin) core_->admin->close();
  core_->health_watch.stop();
  core_->background.end();
  const auto busy = [this] { return core_->admission.running() > 0 || core_->background.running() > 0; };
  const TimePoint limit = after(core_->deadlines.now(), kRunOut);
  while (busy() && core_->deadlines.now() < limit) {
    core_->loop.restart();
    core_->loop.run_one_for(kDrainPoll);
  }
  KVF_CHECK(!busy());
}

Result<std::unique_ptr<Proxy>> Proxy::create(asio::io_context& loop, http::Deadlines& deadlines, Random& random,
                                             std::shared_ptr<Logger> log, ProxyConfig config) {
  KVF_ASSIGN_OR_RETURN(auto access_log, AccessLog::open(deadlines, config.access_log));
  std::shared_ptr<http::TlsContext> trust;
  if (!config.bootstrap_ca.empty()) {
    KVF_ASSIGN_OR_RETURN(trust, http::trust_authorities(config.bootstrap_ca));
  }
  std::unique_ptr<Proxy> proxy(new Proxy(std::make_unique<Core>(
      loop, deadlines, random, std::move(log), std::move(config), std::move(access_log), std::move(trust))));
  Core& core = *proxy->core_;
  KVF_RETURN_IF_ERROR(core.listen());
  if (core.config.canary_interval > Duration(0)) core.background.run(core.run_canary());
  return proxy;
}

uint16_t Proxy::port() const {
  return core_->front->port();
}
uint16_t Proxy::admin_port() const {
  return core_->admin ? core_->admin->port() : uint16_t{0};
}
const Metrics& Proxy::metrics() const {
  return core_->metrics;
}

void Proxy::drain(std::function<void()> done) {
  if (std::exchange(core_->draining, true)) return;
  core_->front->drain();
  core_->health_watch.stop();
  asio::co_spawn(core_->loop, core_->finish(std::move(done)), asio::detached);
}

}  // namespace kvferry::proxy
