#pragma once

#include <boost/asio/io_context.hpp>
#include <map>
#include <memory>
#include <vector>

#include "bootstrap/mailbox.h"
#include "common/metrics.h"
#include "sim/owners.h"
#include "sim/rank_engine.h"

namespace kvferry::sim {

// The fetches of one decoder: each finds its prefiller, reads on all ranks, and ends once. Everything happens on the
// loop; what it is given outlives it.
class Fetches {
 public:
  Fetches(boost::asio::io_context& loop, http::Deadlines& deadlines, OwnerFinder& finder,
          std::shared_ptr<bootstrap::Mailbox> mailbox, const HandoverConfig& config,
          const std::vector<std::unique_ptr<RankEngine>>& ranks, MetricsRegistry& metrics);

  // As KvTransfer::fetch and cancel.
  void start(uint64_t id, KvFetch what, std::function<void(Status)> done);
  void cancel(uint64_t id);

 private:
  struct Fetch;
  using FetchPtr = std::shared_ptr<Fetch>;

  boost::asio::awaitable<void> run(FetchPtr fetch);
  Status read_on(const FetchPtr& fetch, RankEngine& rank, const Owners& owners);
  void rank_done(const FetchPtr& fetch, const ParcelReadOutcome& outcome);
  // Ends it now where nothing can land in its blocks; else the reads end it.
  void stop(const FetchPtr& fetch, Error why);
  void finish(FetchPtr fetch);  // by value: the table's own goes

  boost::asio::io_context& loop_;
  http::Deadlines& deadlines_;
  OwnerFinder& finder_;
  const std::shared_ptr<bootstrap::Mailbox> mailbox_;
  const HandoverConfig& config_;
  const std::vector<std::unique_ptr<RankEngine>>& ranks_;
  MetricsRegistry& metrics_;
  Gauge& running_;
  Histogram& seconds_;
  std::map<uint64_t, FetchPtr> fetches_;
};

}  // namespace kvferry::sim
