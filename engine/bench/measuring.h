#pragma once

#include <memory>
#include <string>

#include "common/clock.h"
#include "engine/bench/auth.h"
#include "engine/bench/pool.h"
#include "engine/engine.h"

namespace kvferry::bench {

// How long `call` takes, in microseconds.
template <class Call>
double timed(Call call) {
  const SystemClock clock;
  const TimePoint began = clock.now();
  call();
  return std::chrono::duration<double, std::micro>(clock.now() - began).count();
}

// An engine with memory of its own that uses one peer.
struct Client {
  std::unique_ptr<Pool> pool;
  std::unique_ptr<Engine> engine;
  Region region;
  PeerRef peer;
  RegionId remote = 0;  // of the peer

  // Connected when it returns.
  static Result<std::unique_ptr<Client>> create(EngineConfig config, const std::string& address, RegionId remote,
                                                uint64_t bytes) {
    auto client = std::make_unique<Client>();
    client->remote = remote;
    KVF_ASSIGN_OR_RETURN(client->pool, Pool::create(bytes));
    KVF_ASSIGN_OR_RETURN(client->engine, Engine::create(std::move(config)));
    KVF_ASSIGN_OR_RETURN(client->region, client->engine->register_memory(client->pool->base(), bytes, MemoryKind::host,
                                                                         kRemoteReadWrite));
    KVF_ASSIGN_OR_RETURN(client->peer, client->engine->peer(address));
    KVF_RETURN_IF_ERROR(client->peer.connect(std::chrono::seconds(10)));
    return client;
  }

  // The first `bytes` of both memories.
  TransferRequest request(Operation operation, uint64_t bytes) const {
    return {peer, operation, {{pool->base(), remote, 0, bytes}}, Duration(0), {}};
  }
};

inline EngineConfig client_config(const std::string& fabric) {
  auto base = base_config();
  KVF_CHECK(base.ok());  // use_trial_keys() made it
  EngineConfig config = std::move(*base);
  config.fabrics = {fabric};
  return config;
}

}  // namespace kvferry::bench
