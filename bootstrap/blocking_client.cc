#include "bootstrap/blocking_client.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <future>
#include <thread>

#include "bootstrap/client.h"
#include "bootstrap/ports.h"

namespace kvferry::bootstrap {

namespace asio = boost::asio;

struct BlockingClient::Core {
  Core(Config config, std::shared_ptr<http::TlsContext> trust)
      : deadlines(loop, clock), client(loop, deadlines, random, settings(std::move(config), std::move(trust))) {
    thread = std::thread([this] {
      const auto guard = asio::make_work_guard(loop);
      loop.run();
    });
  }
  ~Core() {
    loop.stop();
    thread.join();
  }

  static Client::Config settings(Config config, std::shared_ptr<http::TlsContext> trust) {
    Client::Config out;
    out.token = std::move(config.token);
    out.timeout = config.timeout;
    out.trust = std::move(trust);
    return out;
  }

  template <class Value>
  static asio::awaitable<void> deliver(asio::awaitable<Result<Value>> call, std::promise<Result<Value>>& outcome) {
    auto result = co_await std::move(call);
    outcome.set_value(std::move(result));
  }

  template <class Value>
  Result<Value> wait_for(asio::awaitable<Result<Value>> call) {
    std::promise<Result<Value>> outcome;
    auto future = outcome.get_future();
    asio::co_spawn(loop, deliver(std::move(call), outcome), asio::detached);
    return future.get();
  }

  const SystemClock clock;
  SystemRandom random;
  asio::io_context loop{1};
  http::Deadlines deadlines;
  Client client;
  std::thread thread;
};

BlockingClient::BlockingClient(std::unique_ptr<Core> core) : core_(std::move(core)) {}
BlockingClient::~BlockingClient() = default;

Result<std::unique_ptr<BlockingClient>> BlockingClient::create(Config config) {
  if (config.timeout <= Duration(0)) {
    return Error{ErrorCode::invalid_argument, "the timeout must be positive", "", "", "bootstrap"};
  }
  std::shared_ptr<http::TlsContext> trust;
  if (!config.ca_file.empty()) {
    KVF_ASSIGN_OR_RETURN(trust, http::trust_authorities(config.ca_file));
  }
  return std::unique_ptr<BlockingClient>(
      new BlockingClient(std::make_unique<Core>(std::move(config), std::move(trust))));
}

Result<std::shared_ptr<const Workers>> BlockingClient::workers(const std::string& base) {
  KVF_ASSIGN_OR_RETURN(http::Url url, http::parse_url(base, kDefaultPort));
  return core_->wait_for(core_->client.workers(std::move(url)));
}

Result<std::shared_ptr<const WorkerInfo>> BlockingClient::worker(const std::string& server) {
  KVF_ASSIGN_OR_RETURN(http::Url url, http::parse_url(server, kDefaultPort));
  return core_->wait_for(core_->client.worker(std::move(url)));
}

Result<ReleaseState> BlockingClient::release(const std::string& base, const std::string& transfer_id, bool force) {
  KVF_ASSIGN_OR_RETURN(http::Url url, http::parse_url(base, kDefaultPort));
  return core_->wait_for(core_->client.release(std::move(url), transfer_id, force));
}

void BlockingClient::saw(const std::string& engine_id, const std::string& address, uint64_t incarnation) {
  asio::post(core_->loop,
             [this, engine_id, address, incarnation] { core_->client.saw(engine_id, address, incarnation); });
}

}  // namespace kvferry::bootstrap
