#pragma once

#include <boost/asio/io_context.hpp>
#include <memory>
#include <string>
#include <vector>

#include "common/log.h"
#include "common/metrics.h"
#include "sim/kv_transfer.h"
#include "sim/model.h"
#include "sim/rank_engine.h"

namespace kvferry::sim {

// What must agree for KV to mean the same: the model, the cache's dtype, the salt, and the whole prompt.
std::string kv_fingerprint(const std::string& model, const std::string& cache_salt, std::span<const Token> prompt);

// The hand-over by the engine's parcels: an engine for each rank of the model, and, at a prefiller, their bootstrap
// servers. It has a thread of its own, on which callbacks are called; its methods may be called from any thread.
class ParcelTransfer final : public KvTransfer {
 public:
  // `model`, `clock` and `metrics` outlive it.
  static Result<std::unique_ptr<ParcelTransfer>> create(HandoverConfig config, Model& model, const Clock& clock,
                                                        MetricsRegistry& metrics, std::shared_ptr<Logger> log);
  // Callbacks that have not come yet do not come any more.
  ~ParcelTransfer() override;

  void announce(const std::string& transfer_id) override;
  Status publish(KvPublication publication, std::function<void()> released) override;
  void withdraw(const std::string& transfer_id) override;
  void fetch(uint64_t fetch_id, KvFetch fetch, std::function<void(Status)> done) override;
  void cancel(uint64_t fetch_id) override;
  void release(const TransferRef& from) override;

  // A decoder is at once; a prefiller when all its ranks have been seen in the directory.
  bool ready() const;
  // Of rank 0; 0 at a decoder.
  uint16_t bootstrap_port() const;
  const std::string& instance_id() const;
  // Prometheus' text of all ranks' engines, labelled by rank.
  std::string engine_metrics() const;
  // JSON: describe() of all ranks' engines.
  std::string describe() const;

 private:
  struct Core;
  explicit ParcelTransfer(std::unique_ptr<Core> core);
  std::unique_ptr<Core> core_;
};

}  // namespace kvferry::sim
