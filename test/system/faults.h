#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "test/conformance/plugin_cases.h"
#include "test/support/engines.h"
#include "test/support/eventually.h"
#include "test/support/sanitized.h"
#include "test/support/stopwatch.h"
#include "test/support/target.h"
#include "test/support/trial.h"

namespace kvferry::test {

// How long beyond its deadline an outcome may come on a loaded machine, by a stopwatch. I3 allows none; this is the
// machine's share.
constexpr Duration kSlack = std::chrono::milliseconds(1500 * kSlower);

// With these a machine that stands still for seconds ends no session; where the heartbeats are what is tested, fewer.
constexpr int kPatient = 100;

// An engine here that reads from and writes to a target in another process.
class Initiator {
 public:
  // `transports` are a plug-in's.
  Initiator(const std::string& fabric, size_t bytes, AuthConfig auth = {},
            Duration heartbeat = std::chrono::milliseconds(200 * kSlower), int missed_heartbeats = kPatient,
            const std::string& transports = "")
      : memory_(bytes) {
    EngineConfig config;
    config.engine_id = "initiator";
    config.fabrics = {fabric};
    use_transports(config, fabric, transports);
    config.auth = std::move(auth);
    config.heartbeat = heartbeat;
    config.missed_heartbeats = missed_heartbeats;
    config.connect_timeout = std::chrono::seconds(10);
    config.logger = make_null_logger();
    config.allow_open = true;
    engine_ = must(Engine::create(config));
    region_ = must(engine_->register_memory(memory_.data(), bytes, MemoryKind::host, kPrivate));
  }

  Engine& engine() { return *engine_; }
  std::vector<std::byte>& memory() { return memory_; }
  void fill(uint8_t value) { std::fill(memory_.begin(), memory_.end(), std::byte{value}); }

  TransferRequest request(const Target& target, Operation operation, Duration timeout) {
    return request(target.address(), target.region(), operation, timeout, std::min(memory_.size(), target.size()));
  }
  TransferRequest request(const std::string& address, RegionId region, Operation operation, Duration timeout,
                          uint64_t bytes) {
    TransferRequest made;
    made.peer = must(engine_->peer(address));
    made.operation = operation;
    // In 256 pieces that do not merge: the far side's order is another.
    const uint64_t piece = bytes / 256;
    for (uint64_t i = 0; i < 256; ++i)
      made.pairs.push_back({memory_.data() + i * piece, region, (i % 2 == 0 ? i + 1 : i - 1) * piece, piece});
    made.timeout = timeout;
    return made;
  }

 private:
  std::vector<std::byte> memory_;
  std::unique_ptr<Engine> engine_;
  Region region_;
};

inline std::string text_of(const Outcome& outcome) {
  return outcome.status.ok() ? "ok" : outcome.status.error().to_string();
}

inline bool in_the_middle(const Outcome& outcome, uint64_t all) {
  return outcome.bytes_done > 0 && outcome.bytes_done < all;
}

// The next transfer to a healthy target works, however the last one ended (I5). One during which the machine stood
// still, which is all that heartbeats can tell from a peer's death, says nothing.
inline void expect_works(Initiator& initiator, const Target& target) {
  initiator.fill(0x5a);
  Outcome outcome;
  for (int attempt = 0; attempt < 10; ++attempt) {
    const Stopwatch watch;
    outcome =
        initiator.engine().transfer(initiator.request(target, Operation::write, std::chrono::seconds(30 * kSlower)));
    if (outcome.status.ok() || watch.stood_still() < std::chrono::milliseconds(200)) break;
  }
  ASSERT_TRUE(outcome.status.ok()) << text_of(outcome);
  const auto theirs = target.memory(0, 1 << 20);
  EXPECT_EQ(std::count(theirs.begin(), theirs.end(), std::byte{0x5a}), 1 << 20);
}

}  // namespace kvferry::test
