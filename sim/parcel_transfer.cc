#include "sim/parcel_transfer.h"

#include <fmt/format.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <map>
#include <mutex>
#include <thread>

#include "bootstrap/mailbox.h"
#include "sim/fetches.h"
#include "sim/metrics_page.h"

namespace kvferry::sim {
namespace {

namespace asio = boost::asio;

constexpr Duration kReleaseLimit = std::chrono::seconds(5);

}  // namespace

std::string kv_fingerprint(const std::string& model, const std::string& cache_salt, std::span<const Token> prompt) {
  const XXH128_hash_t hash = XXH3_128bits(prompt.data(), prompt.size_bytes());
  return fmt::format("layout=1 dtype=float32 model={} salt={}:{} prompt={}:{:016x}{:016x}", model, cache_salt.size(),
                     cache_salt, prompt.size(), hash.high64, hash.low64);
}

// Members that the loop's thread owns are marked so; the rest is thread-safe or constant.
struct ParcelTransfer::Core {
  Core(HandoverConfig config_in, const Clock& clock_in, MetricsRegistry& metrics, std::shared_ptr<Logger> log_in)
      : config(std::move(config_in)),
        clock(clock_in),
        log(std::move(log_in)),
        published_total(metrics.counter("kvferry_sim_parcels_published_total", "Parcels published on all ranks")),
        published_gauge(metrics.gauge("kvferry_sim_parcels", "Parcels published and not yet given back by all ranks")),
        deadlines(loop, clock_in),
        mailbox(std::make_shared<bootstrap::Mailbox>(loop)),
        finder(loop, deadlines, random),
        fetches(loop, deadlines, finder, mailbox, config, ranks, metrics) {}
  ~Core() {
    mailbox->close();
    loop.stop();
    if (thread.joinable()) thread.join();
    ranks.clear();  // their callbacks hold what follows
  }

  Status start(Model& model);
  Status publish(KvPublication publication, std::function<void()> released);
  void take_back(const std::string& transfer_id);
  asio::awaitable<void> watch(RankEngine& rank, int descriptor);
  asio::awaitable<void> release(TransferRef from);
  asio::awaitable<void> see_registration();

  struct Published {
    size_t ranks_left = 0;
    std::function<void()> released;
  };

  const HandoverConfig config;
  const Clock& clock;
  const std::shared_ptr<Logger> log;
  Counter& published_total;
  Gauge& published_gauge;
  std::vector<std::unique_ptr<RankEngine>> ranks;  // constant once started
  std::atomic<bool> ready{false};

  std::mutex mutex;
  std::map<std::string, Published> published;  // GUARDED_BY(mutex)

  SystemRandom random;
  asio::io_context loop{1};
  http::Deadlines deadlines;  // the loop's, as what follows
  const std::shared_ptr<bootstrap::Mailbox> mailbox;
  OwnerFinder finder;
  Fetches fetches;
  std::thread thread;
};

Status ParcelTransfer::Core::start(Model& model) {
  for (size_t tp = 0; tp < model.tp(); ++tp) {
    KVF_ASSIGN_OR_RETURN(auto rank, RankEngine::create(config, model.kv_cache(tp)));
    KVF_ASSIGN_OR_RETURN(const int descriptor, rank->engine().completion_fd());
    ranks.push_back(std::move(rank));
    asio::co_spawn(loop, watch(*ranks.back(), descriptor), asio::detached);
  }
  if (config.gives) {
    asio::co_spawn(loop, see_registration(), asio::detached);
  } else {
    ready = true;
  }
  thread = std::thread([this] {
    const auto guard = asio::make_work_guard(loop);
    loop.run();
  });
  return {};
}

Status ParcelTransfer::Core::publish(KvPublication publication, std::function<void()> released) {
  const std::string& id = publication.transfer_id;
  {
    const std::lock_guard lock(mutex);
    if (!published.try_emplace(id, Published{ranks.size(), std::move(released)}).second) {
      return Error{ErrorCode::already_exists, "transfer " + id + " is published already", "", "", "sim"};
    }
  }
  ParcelSpec spec{.transfer_id = id,
                  .blocks = {BlockList{.first = 0, .ids = std::move(publication.blocks)}},
                  .tokens = publication.tokens_covered,
                  .fingerprint = kv_fingerprint(config.model_fingerprint, publication.cache_salt, publication.prompt),
                  .lease = config.lease};
  for (size_t at = 0; at < ranks.size(); ++at) {
    Status status = ranks[at]->parcels().publish(spec);
    if (status.ok()) continue;
    {
      const std::lock_guard lock(mutex);
      published.erase(id);
    }
    for (size_t before = 0; before < ranks.size(); ++before) ranks[before]->parcels().release(id, true);
    return status;
  }
  published_total.add();
  return {};
}

// One rank's blocks of a parcel are the server's again.
void ParcelTransfer::Core::take_back(const std::string& transfer_id) {
  std::function<void()> released;
  {
    const std::lock_guard lock(mutex);
    const auto found = published.find(transfer_id);
    if (found == published.end() || --found->second.ranks_left > 0) return;
    released = std::move(found->second.released);
    published.erase(found);
  }
  released();
}

asio::awaitable<void> ParcelTransfer::Core::watch(RankEngine& rank, int descriptor) {
  asio::posix::stream_descriptor readable(loop, ::dup(descriptor));
  for (;;) {
    const auto [error] =
        co_await readable.async_wait(asio::posix::stream_descriptor::wait_read, asio::as_tuple(asio::use_awaitable));
    if (error) co_return;
    rank.engine().take_completed();
    for (const ParcelReleased& back : rank.parcels().take_released()) {
      log->debug("parcel {} of rank {}: {}", back.transfer_id, rank.rank().tp_rank, to_string(back.why));
      take_back(back.transfer_id);
    }
  }
}

asio::awaitable<void> ParcelTransfer::Core::release(TransferRef from) {
  const auto owners = co_await finder.find(from, after(clock.now(), kReleaseLimit));
  if (!owners.ok()) {
    log->debug("parcel {} not released: {}", from.transfer_id, owners.error().to_string());
    co_return;
  }
  RankEngine& rank = *ranks.front();
  for (const auto& [id, address] : (*owners)->addresses) {
    const auto peer = rank.engine().peer(address);
    if (peer.ok()) rank.parcels().release_at(*peer, from.transfer_id, false, kReleaseLimit);
  }
}

// Decoders are not sent here before they could find every rank.
asio::awaitable<void> ParcelTransfer::Core::see_registration() {
  TransferRef self;
  self.remote_engine_id = config.instance_id;
  self.remote_bootstrap_addr = config.bootstrap_url.empty()
                                   ? http::Url{config.host, config.bootstrap_port, ""}.to_string()
                                   : config.bootstrap_url;
  asio::steady_timer timer(loop);
  for (;;) {
    const auto found = co_await finder.find(self, after(clock.now(), kReleaseLimit));
    if (found.ok()) break;
    log->warning("not ready: {}", found.error().to_string());
    timer.expires_after(std::chrono::milliseconds(100));
    co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
  }
  ready = true;
}

ParcelTransfer::ParcelTransfer(std::unique_ptr<Core> core) : core_(std::move(core)) {}
ParcelTransfer::~ParcelTransfer() = default;

Result<std::unique_ptr<ParcelTransfer>> ParcelTransfer::create(HandoverConfig config, Model& model, const Clock& clock,
                                                               MetricsRegistry& metrics, std::shared_ptr<Logger> log) {
  auto core = std::make_unique<Core>(std::move(config), clock, metrics, std::move(log));
  KVF_RETURN_IF_ERROR(core->start(model));
  metrics.on_collect([raw = core.get()] {
    const std::lock_guard lock(raw->mutex);
    raw->published_gauge.set(static_cast<int64_t>(raw->published.size()));
  });
  return std::unique_ptr<ParcelTransfer>(new ParcelTransfer(std::move(core)));
}

void ParcelTransfer::announce(const std::string& transfer_id) {
  for (const auto& rank : core_->ranks) {
    if (const Status status = rank->parcels().announce(transfer_id, core_->config.lease); !status.ok()) {
      core_->log->debug("{}", status.error().to_string());
    }
  }
}

Status ParcelTransfer::publish(KvPublication publication, std::function<void()> released) {
  return core_->publish(std::move(publication), std::move(released));
}

void ParcelTransfer::withdraw(const std::string& transfer_id) {
  for (const auto& rank : core_->ranks) rank->parcels().withdraw(transfer_id);
}

void ParcelTransfer::fetch(uint64_t fetch_id, KvFetch fetch, std::function<void(Status)> done) {
  core_->mailbox->post([core = core_.get(), fetch_id, fetch = std::move(fetch), done = std::move(done)]() mutable {
    core->fetches.start(fetch_id, std::move(fetch), std::move(done));
  });
}

void ParcelTransfer::cancel(uint64_t fetch_id) {
  core_->mailbox->post([core = core_.get(), fetch_id] { core->fetches.cancel(fetch_id); });
}

void ParcelTransfer::release(const TransferRef& from) {
  core_->mailbox->post([core = core_.get(), from] { asio::co_spawn(core->loop, core->release(from), asio::detached); });
}

bool ParcelTransfer::ready() const {
  return core_->ready;
}
uint16_t ParcelTransfer::bootstrap_port() const {
  return core_->ranks.front()->bootstrap_port();
}
const std::string& ParcelTransfer::instance_id() const {
  return core_->config.instance_id;
}

std::string ParcelTransfer::engine_metrics() const {
  MetricsPage page;
  for (const auto& rank : core_->ranks) {
    page.add(rank->engine().metrics(), fmt::format(R"(tp_rank="{}")", rank->rank().tp_rank));
  }
  return page.text();
}

std::string ParcelTransfer::describe() const {
  std::string out;
  for (const auto& rank : core_->ranks) out += (out.empty() ? "" : ",") + rank->engine().describe();
  return "[" + out + "]";
}

}  // namespace kvferry::sim
