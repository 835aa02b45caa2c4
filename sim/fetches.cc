#include "sim/fetches.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

#include "sim/parcel_transfer.h"

namespace kvferry::sim {

namespace asio = boost::asio;

struct Fetches::Fetch {
  Fetch(http::Deadlines& deadlines, std::function<void()> expired) : limit(deadlines, std::move(expired)) {}

  uint64_t id = 0;
  KvFetch what;
  std::function<void(Status)> done;
  TimePoint began{};
  http::Deadline limit;  // of finding the owners; reads have their own
  std::vector<ParcelReading> readings;
  size_t ranks_left = 0;
  Status status;  // the first failure
  uint64_t bytes = 0;
  std::string fabric = "none";
};

Fetches::Fetches(asio::io_context& loop, http::Deadlines& deadlines, OwnerFinder& finder,
                 std::shared_ptr<bootstrap::Mailbox> mailbox, const HandoverConfig& config,
                 const std::vector<std::unique_ptr<RankEngine>>& ranks, MetricsRegistry& metrics)
    : loop_(loop),
      deadlines_(deadlines),
      finder_(finder),
      mailbox_(std::move(mailbox)),
      config_(config),
      ranks_(ranks),
      metrics_(metrics),
      running_(metrics.gauge("kvferry_sim_fetches", "Fetches of KV under way")),
      seconds_(metrics.histogram("kvferry_sim_fetch_seconds", "Fetches that brought KV, from asked to there",
                                 latency_bounds())) {}

void Fetches::start(uint64_t id, KvFetch what, std::function<void(Status)> done) {
  auto fetch = std::make_shared<Fetch>(deadlines_, [this, id] {
    const FetchPtr late = fetches_.at(id);
    stop(late, Error{ErrorCode::deadline_exceeded, "the prefiller was not found in time", "",
                     late->what.from.remote_engine_id, "sim"});
  });
  fetch->id = id;
  fetch->what = std::move(what);
  fetch->done = std::move(done);
  fetch->began = deadlines_.now();
  fetch->limit.set(fetch->what.deadline);
  fetches_.emplace(id, fetch);
  running_.add(1);
  asio::co_spawn(loop_, run(std::move(fetch)), asio::detached);
}

void Fetches::cancel(uint64_t id) {
  const auto found = fetches_.find(id);
  if (found != fetches_.end())
    stop(found->second, Error{ErrorCode::cancelled, "the request was aborted", "", "", "sim"});
}

asio::awaitable<void> Fetches::run(FetchPtr fetch) {
  const auto owners = co_await finder_.find(fetch->what.from, fetch->what.deadline);
  if (!fetches_.contains(fetch->id)) co_return;
  fetch->limit.clear();
  if (!owners.ok()) {
    stop(fetch, owners.error());
    co_return;
  }
  fetch->ranks_left = ranks_.size();
  for (const auto& rank : ranks_) {
    ParcelReadOutcome refused;
    refused.status = fetch->status.ok() ? read_on(fetch, *rank, **owners) : fetch->status;
    if (!refused.status.ok()) rank_done(fetch, refused);
  }
}

Status Fetches::read_on(const FetchPtr& fetch, RankEngine& rank, const Owners& owners) {
  const KvFetch& what = fetch->what;
  ParcelReadRequest request;
  request.transfer_id = what.from.transfer_id;
  request.expected_instance_id = what.from.remote_engine_id;
  request.group_instance_id = config_.instance_id;
  request.fingerprint = kv_fingerprint(config_.model_fingerprint, what.cache_salt, what.prompt);
  request.first_token = static_cast<uint32_t>(what.first_token);
  request.end_token = static_cast<uint32_t>(what.end_token);
  request.blocks = {
      BlockList{.first = static_cast<uint32_t>(what.first_token / config_.block_size), .ids = what.blocks}};
  request.timeout = what.deadline - deadlines_.now();
  for (const RankId id : owners_to_settle(rank.rank(), owners.tp_size, owners.pp_size)) {
    KVF_ASSIGN_OR_RETURN(PeerRef peer, rank.engine().peer(owners.addresses.at(id)));
    request.owners.push_back(std::move(peer));
  }
  KVF_ASSIGN_OR_RETURN(const ParcelReading reading, rank.parcels().read(std::move(request)));
  fetch->readings.push_back(reading);
  reading.on_done([this, mailbox = mailbox_, fetch](const ParcelReadOutcome& outcome) {
    mailbox->post([this, fetch, outcome] { rank_done(fetch, outcome); });
  });
  return {};
}

void Fetches::rank_done(const FetchPtr& fetch, const ParcelReadOutcome& outcome) {
  fetch->bytes += outcome.bytes;
  if (!outcome.fabric.empty()) fetch->fabric = outcome.fabric;
  if (!outcome.status.ok() && fetch->status.ok()) {
    fetch->status = outcome.status;
    for (const ParcelReading& reading : fetch->readings) reading.cancel();
  }
  if (--fetch->ranks_left == 0) finish(fetch);
}

void Fetches::stop(const FetchPtr& fetch, Error why) {
  if (fetch->status.ok()) fetch->status = std::move(why);
  if (fetch->ranks_left == 0) return finish(fetch);
  for (const ParcelReading& reading : fetch->readings) reading.cancel();
}

void Fetches::finish(FetchPtr fetch) {
  fetches_.erase(fetch->id);
  fetch->limit.clear();
  running_.add(-1);
  const std::string outcome(fetch->status.ok() ? "ok" : to_string(fetch->status.error().code));
  metrics_
      .counter("kvferry_sim_fetches_total", "Fetches of KV by fabric and how they ended",
               {{"fabric", fetch->fabric}, {"outcome", outcome}})
      .add();
  if (fetch->status.ok()) {
    seconds_.observe(seconds(deadlines_.now() - fetch->began));
    metrics_.counter("kvferry_sim_fetched_bytes_total", "Bytes of KV that were fetched", {{"fabric", fetch->fabric}})
        .add(fetch->bytes);
  }
  fetch->done(fetch->status);
}

}  // namespace kvferry::sim
