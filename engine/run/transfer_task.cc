#include "engine/run/transfer_task.h"

#include <fmt/format.h>

#include "engine/memory/registry.h"

namespace kvferry {

TransferPhase transition(TransferPhase from, TransferEvent event) {
  using P = TransferPhase;
  using E = TransferEvent;
  if (from == P::ended) return from;
  switch (event) {
    case E::session_ready:
      return from == P::waiting ? P::moving : from;
    case E::session_lost:
      return from == P::moving ? P::waiting : from;
    case E::moved:
      return from == P::moving ? P::notifying : from;
    case E::moved_unannounced:
      return from == P::moving ? P::ended : from;
    case E::acknowledged:
      return from == P::notifying ? P::ended : from;
    case E::give_up_write:
      return from == P::moving ? P::fencing : P::ended;
    case E::give_up:
      return P::ended;
    case E::fenced:
      return from == P::fencing ? P::ended : from;
  }
  return from;
}

Status check_against(const std::shared_ptr<const RegionTable>& table, Job& job) {
  const uint32_t needed = job.operation == Operation::read ? kRemoteRead : kRemoteWrite;
  job.table = table;
  job.remote.clear();
  job.remote.reserve(job.pairs.size());
  const RegionInfo* region = nullptr;
  for (const Pair& pair : job.pairs) {
    if (region == nullptr || region->id != pair.region) region = table->find(pair.region);
    if (region == nullptr) return Error{ErrorCode::not_found, fmt::format("the peer has no region {}", pair.region)};
    if ((region->permissions & needed) != needed)
      return Error{ErrorCode::permission_denied, fmt::format("region {} of the peer is not open for remote {}",
                                                             region->id, needed == kRemoteRead ? "read" : "write")};
    KVF_RETURN_IF_ERROR(check_span(*region, pair.offset, pair.length));
    job.remote.push_back(region);
  }
  return {};
}

Status check_incarnation(const TransferTask& task, uint64_t known) {
  if (task.incarnation == 0 || task.incarnation == known) return {};
  return Error{ErrorCode::peer_lost, "the peer has restarted: the spans belong to an earlier incarnation"};
}

Error explain_failure(const TransferTask& task, const std::string& peer_id, const std::string& address, TimePoint now,
                      const char* fabric, const Error& why) {
  std::string text =
      fmt::format("{} \"{}\" ({}) failed after {:.1f} s: {}", task.job ? "transfer to peer" : "notification to peer",
                  peer_id.empty() ? "?" : peer_id, address, seconds(now - task.submitted), why.to_string());
  if (fabric != nullptr)
    text +=
        fmt::format("; fabric {}; {} of {} spans done", fabric, task.job->spans_done.load(), task.job->pairs.size());
  return Error{why.code, std::move(text), {}, peer_id, fabric != nullptr ? fabric : ""};
}

TransferMetrics TransferMetrics::of(MetricsRegistry& metrics) {
  const auto ended = [&](const char* outcome) -> Counter& {
    return metrics.counter("kvferry_transfers_total", "Transfers that this engine started, by outcome",
                           {{"outcome", outcome}});
  };
  return {ended("ok"), ended("failed"),
          metrics.counter("kvferry_transfer_bytes_total", "Bytes moved by transfers that this engine started"),
          metrics.histogram("kvferry_transfer_seconds", "Duration of transfers that this engine started",
                            latency_bounds())};
}

void TransferMetrics::record(const Outcome& outcome, Duration took) {
  (outcome.status.ok() ? ok : failed).add();
  bytes.add(outcome.bytes_done);
  this->seconds.observe(kvferry::seconds(took));
}

}  // namespace kvferry
