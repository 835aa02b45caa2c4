#pragma once

#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <map>
#include <span>

#include "http/server.h"
#include "proxy/admission.h"
#include "proxy/background.h"
#include "proxy/exchange.h"
#include "proxy/proxy.h"

namespace kvferry::proxy {

// The parts of a Proxy, in the order in which they depend on each other. Internal to proxy/.
struct Proxy::Core {
  Core(boost::asio::io_context& loop, http::Deadlines& deadlines, Random& random, std::shared_ptr<Logger> log,
       ProxyConfig config, std::unique_ptr<AccessLog> access_log, std::shared_ptr<http::TlsContext> trust);

  Status listen();
  Status add_backend(Role role, http::Url url, std::optional<uint16_t> bootstrap_port);
  void publish_gauges();

  // proxy/front.cc
  std::optional<http::Response> answer_from_head(const http::RequestHead& request);
  boost::asio::awaitable<void> forward(http::Request& request, http::ResponseWriter& writer);
  http::Response health() const;
  http::Response metrics_page() const;

  // proxy/admin.cc
  boost::asio::awaitable<void> serve_admin(http::Request& request, http::ResponseWriter& writer);
  http::Response change_backends(const std::string& body);
  std::string describe() const;

  // proxy/dashboard.cc
  http::Response dashboard() const;
  http::Response pinned_parcels() const;
  boost::asio::awaitable<http::Response> peers();

  // proxy/canary.cc
  boost::asio::awaitable<void> run_canary();
  boost::asio::awaitable<bool> send_canary();
  using Counts = std::map<std::string, std::optional<double>>;  // by backend
  boost::asio::awaitable<Counts> counts_of(Role role, std::span<const std::string_view> metrics);

  boost::asio::awaitable<void> finish(std::function<void()> done);

  boost::asio::io_context& loop;
  http::Deadlines& deadlines;
  Random& random;
  const std::shared_ptr<Logger> log;
  const ProxyConfig config;
  Metrics metrics;
  Scanner scanner;
  Backends backends;
  Router router;
  Pool pool;
  bootstrap::Client bootstrap;
  Background background;
  Health health_watch;
  Releases releases;
  std::unique_ptr<AccessLog> access_log;
  Admission admission;
  Context context;
  bool draining = false;
  const std::shared_ptr<bool> alive = std::make_shared<bool>(true);
  std::function<void()> end_canary;  // as a client that leaves; empty while none is asking
  std::unique_ptr<http::Server> front;
  std::unique_ptr<http::Server> admin;
};

}  // namespace kvferry::proxy
