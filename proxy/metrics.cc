#include "proxy/metrics.h"

namespace kvferry::proxy {

Metrics::Metrics()
    : prefill_seconds(
          registry.histogram("kvferry_proxy_prefill_seconds", "Prefiller's leg, sent to answered", latency_bounds())),
      handover_seconds(registry.histogram("kvferry_proxy_handover_seconds",
                                          "Prefiller's answer to the decoder's first byte", latency_bounds())),
      first_byte_seconds(registry.histogram("kvferry_proxy_first_byte_seconds",
                                            "Request read to the first byte of its answer", latency_bounds())),
      total_seconds(
          registry.histogram("kvferry_proxy_request_seconds", "Request read to answer complete", latency_bounds())),
      relayed_bytes(registry.counter("kvferry_proxy_relayed_bytes_total", "Bytes of answers passed on")),
      relay_pieces(registry.counter("kvferry_proxy_relayed_pieces_total", "Pieces in which they came")),
      canary_moved(registry.counter("kvferry_proxy_canary_total", "Canary requests by what the backends' metrics say",
                                    {{"result", "moved"}})),
      canary_not_moved(registry.counter("kvferry_proxy_canary_total",
                                        "Canary requests by what the backends' metrics say",
                                        {{"result", "not_moved"}})),
      canary_failed(registry.counter("kvferry_proxy_canary_total", "Canary requests by what the backends' metrics say",
                                     {{"result", "failed"}})),
      in_flight(registry.gauge("kvferry_proxy_requests_in_flight", "Requests being served")),
      queued(registry.gauge("kvferry_proxy_requests_queued", "Requests waiting for a place")) {}

const Metrics::PairSeries& Metrics::pair(const std::string& prefill, const std::string& decode) {
  const auto found = pairs_.find(std::pair(prefill, decode));
  if (found != pairs_.end()) return found->second;
  const Labels labels{{"prefill", prefill}, {"decode", decode}};
  Gauge& live =
      registry.gauge("kvferry_proxy_pair_requests", "Requests that a prefiller and a decoder serve now", labels);
  Counter& total =
      registry.counter("kvferry_proxy_pairs_total", "Requests handed over from a prefiller to a decoder", labels);
  if (pairs_.size() >= MetricsRegistry::kMaxSeries) pairs_.clear();
  return pairs_.emplace(std::pair(prefill, decode), PairSeries{live, total}).first->second;
}

Metrics::Pair::Pair(Metrics& metrics, const std::string& prefill, const std::string& decode)
    : live_(metrics.pair(prefill, decode).live) {
  live_.add(1);
  metrics.pair(prefill, decode).total.add();
}

void Metrics::leg(std::string_view leg, int status, std::string_view cause, std::string_view backend) {
  const auto key = std::make_tuple(leg, status, cause, backend);
  auto found = legs_.find(key);
  if (found == legs_.end()) {
    Counter& counter = registry.counter("kvferry_proxy_legs_total", "Legs of requests by how they ended",
                                        {{"leg", std::string(leg)},
                                         {"status", std::to_string(status)},
                                         {"cause", std::string(cause)},
                                         {"backend", std::string(backend)}});
    if (legs_.size() >= MetricsRegistry::kMaxSeries) return counter.add();
    found = legs_.emplace(std::make_tuple(std::string(leg), status, std::string(cause), std::string(backend)), &counter)
                .first;
  }
  found->second->add();
}

}  // namespace kvferry::proxy
