#include "bootstrap/server.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <future>
#include <thread>

#include "bootstrap/limits.h"
#include "bootstrap/registrar.h"
#include "bootstrap/service.h"
#include "common/clock.h"
#include "common/random.h"
#include "http/server.h"

namespace kvferry::bootstrap {
namespace {

namespace asio = boost::asio;

constexpr Duration kLeaveLimit = std::chrono::milliseconds(500);

http::ServerConfig listening(const ServerSettings& settings, std::shared_ptr<Logger> log) {
  http::ServerConfig config;
  config.host = settings.host;
  config.port = settings.port;
  config.certificate_file = settings.certificate_file;
  config.key_file = settings.key_file;
  config.logger = std::move(log);
  config.max_connections = settings.max_connections;
  config.max_connections_per_address = settings.max_per_address;
  config.max_head_bytes = kMaxHeadBytes;
  config.max_body_bytes = kMaxBodyBytes;
  config.idle_timeout = settings.idle_timeout;
  config.head_timeout = settings.head_timeout;
  config.body_timeout = settings.body_timeout;
  config.write_timeout = std::chrono::seconds(10);
  return config;
}

ServiceConfig serving(const ServerSettings& settings, std::shared_ptr<http::TlsContext> trust) {
  ServiceConfig config;
  config.token = settings.token;
  config.keeps_directory = settings.keeps_directory;
  config.directory = settings.directory;
  config.query_ttl = settings.query_ttl;
  config.release_limit = settings.release_limit;
  config.gathering = settings.gathering;
  config.trust = std::move(trust);
  return config;
}

}  // namespace

// The loop's thread owns everything here but `thread` and `mailbox`. What holds on to the loop ends before it.
struct Server::Core {
  Core(ServerSettings settings_in, std::shared_ptr<http::TlsContext> trust_in, ParcelControl* parcels)
      : settings(std::move(settings_in)),
        log(settings.logger ? settings.logger : make_stderr_logger(LogLevel::warning, "bootstrap")),
        deadlines(loop, clock),
        trust(std::move(trust_in)),
        mailbox(std::make_shared<Mailbox>(loop)),
        service(std::make_shared<Service>(loop, deadlines, mailbox, serving(settings, trust), parcels)),
        began(clock.now()) {}

  Status listen();
  Status prepare_registrar();
  void set_worker(const WorkerInfo& worker);
  // Runs `work` on the loop and waits for it.
  template <class Work>
  void on_loop(Work work);
  void stop();

  const ServerSettings settings;
  const std::shared_ptr<Logger> log;
  const SystemClock clock;
  SystemRandom random;
  asio::io_context loop{1};
  http::Deadlines deadlines;
  const std::shared_ptr<http::TlsContext> trust;
  const std::shared_ptr<Mailbox> mailbox;
  const std::shared_ptr<Service> service;
  const TimePoint began;
  std::unique_ptr<http::Server> http;
  std::unique_ptr<Registrar> registrar;
  uint16_t port = 0;
  std::thread thread;
};

Status Server::Core::listen() {
  // The connections share the service: coroutines that are destroyed with the loop still find it.
  const auto handler = [kept = service](http::Request& request, http::ResponseWriter& out) {
    return kept->handle(request, out);
  };
  auto created = http::Server::create(loop, deadlines, listening(settings, log), handler);
  if (!created.ok()) {
    Error error = created.error();
    if (settings.port != 0 && error.code == ErrorCode::unavailable) {
      const std::string holder = port_holder(settings.port);
      if (!holder.empty()) error.cause += "; " + holder;
    }
    return error;
  }
  http = std::move(*created);
  port = http->port();
  service->on_collect([this] {
    if (!http) return;
    const http::ServerCounts counts = http->counts();
    service->metrics()
        .gauge("kvferry_bootstrap_connections", "Open connections")
        .set(static_cast<int64_t>(counts.open));
    service->metrics()
        .gauge("kvferry_bootstrap_connections_refused", "Connections refused at the limit since the start")
        .set(static_cast<int64_t>(counts.refused));
  });
  return {};
}

Status Server::Core::prepare_registrar() {
  if (settings.base_url.empty()) return {};
  KVF_ASSIGN_OR_RETURN(http::Url base, http::parse_url(settings.base_url, kDefaultPort));
  Registrar::Config config;
  config.base = std::move(base);
  config.token = settings.token;
  config.trust = trust;
  config.ttl = settings.worker_ttl;
  config.heartbeat = settings.worker_heartbeat;
  const auto changed = [logger = log, where = settings.base_url](Registrar::State state, const std::string& why) {
    if (state == Registrar::State::registered) {
      logger->info("registered at {}", where);
    } else {
      logger->warning("not registered at {}: {}", where, why);
    }
  };
  registrar = std::make_unique<Registrar>(loop, deadlines, random, std::move(config), changed);
  return {};
}

void Server::Core::set_worker(const WorkerInfo& worker) {
  service->set_worker(worker);
  if (!registrar) return;
  const auto engine = http::parse_url(worker.address, 0);
  if (!engine.ok()) return log->error("not registered: the engine's address is {}", worker.address);
  Registration registration;
  registration.engine_id = worker.instance_id.empty() ? worker.engine_id : worker.instance_id;
  registration.rank = {worker.rank.dp_rank, worker.rank.tp_rank, worker.rank.pp_rank};
  registration.addr = "tcp://" + engine->authority();
  http::Url own = *engine;
  own.port = port;
  own.secure = !settings.certificate_file.empty();
  registration.http = own.to_string();
  registration.incarnation = worker.incarnation;
  registrar->keep(registration, began);
}

template <class Work>
void Server::Core::on_loop(Work work) {
  std::promise<void> done;
  asio::post(loop, [&] {
    work();
    done.set_value();
  });
  done.get_future().wait();
}

void Server::Core::stop() {
  if (thread.joinable()) {
    std::promise<void> left;
    on_loop([&] {
      if (!registrar) return left.set_value();
      asio::co_spawn(loop, registrar->leave(kLeaveLimit), [&](const std::exception_ptr&) { left.set_value(); });
    });
    left.get_future().wait();
    mailbox->close();
    loop.stop();
    thread.join();
  }
  registrar.reset();
  http.reset();
}

Server::Server(std::unique_ptr<Core> core) : core_(std::move(core)) {}

Server::~Server() {
  core_->stop();
}

Result<std::unique_ptr<Server>> Server::create(ServerSettings settings, ParcelControl* parcels) {
  std::shared_ptr<http::TlsContext> trust;
  if (!settings.ca_file.empty()) {
    KVF_ASSIGN_OR_RETURN(trust, http::trust_authorities(settings.ca_file));
  }
  auto core = std::make_unique<Core>(std::move(settings), std::move(trust), parcels);
  KVF_RETURN_IF_ERROR(core->prepare_registrar());
  KVF_RETURN_IF_ERROR(core->listen());
  core->thread = std::thread([&loop = core->loop] {
    const auto guard = asio::make_work_guard(loop);
    loop.run();
  });
  return std::unique_ptr<Server>(new Server(std::move(core)));
}

uint16_t Server::port() const {
  return core_->port;
}

void Server::set_worker(WorkerInfo worker) {
  core_->on_loop([&] { core_->set_worker(worker); });
}

std::string Server::metrics() const {
  std::string text;
  core_->on_loop([&] { text = core_->service->metrics().expose(); });
  return text;
}

}  // namespace kvferry::bootstrap
