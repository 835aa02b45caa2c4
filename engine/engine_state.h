#pragma once

#include <unistd.h>

#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/fabric/plugin/node.h"
#include "engine/io/secure_network.h"
#include "engine/io/socket_network.h"
#include "engine/parcel/owner.h"
#include "engine/parcel/reader.h"
#include "engine/run/core.h"
#include "engine/run/driver.h"

// What the handles of engine/engine.h point to. Not installed.

namespace kvferry::detail {

// Everything one engine owns, in the order in which it must be built; torn down in the reverse.
struct EngineState {
  EngineConfig config;
  const pid_t pid = ::getpid();
  std::shared_ptr<Clock> clock = std::make_shared<SystemClock>();
  SystemRandom random;
  MetricsRegistry metrics;
  std::unique_ptr<GateWords> words;
  std::unique_ptr<Registry> registry;
  std::unique_ptr<EpollLoop> loop;
  std::shared_ptr<const Topology> topology;          // of all rails; null while no fabric has several
  std::vector<std::unique_ptr<plugin::Node>> nodes;  // of the fabrics of plug-ins
  std::string rdma;                                  // JSON: what "rdma" has come to; empty: it was not named
  std::unique_ptr<SocketNetwork> network;
  std::unique_ptr<Credentials> credentials;       // null in mode open
  std::unique_ptr<SecureNetwork> secure_network;  // likewise
  std::unique_ptr<local::Copier> copier;
  std::unique_ptr<LoopDriver> driver;
  std::unique_ptr<CompletionHub> hub;
  std::unique_ptr<NotificationQueue> notifications;
  std::unique_ptr<EngineCore> core;
  std::unique_ptr<ParcelEvents> parcel_events;
  std::unique_ptr<ParcelOwner> parcel_owner;
  std::unique_ptr<ParcelReader> parcel_reader;
  std::optional<TransferMetrics> transfer_metrics;
  std::string engine_id;
  uint64_t incarnation = 0;
  std::string address;
  std::atomic<uint64_t> next_transfer{1};
  std::atomic<size_t> in_flight{0};
  std::atomic<bool> announcing{false};
  std::atomic<bool> stopped{false};

  Network& outer_network() {
    return secure_network ? static_cast<Network&>(*secure_network) : static_cast<Network&>(*network);
  }
  // Runs `task` on the loop and waits until it has called what it was given.
  void call(const std::function<void(Task finished)>& task, TimePoint deadline = kNever);
  Status usable() const;
  void announce();
  // All at once, with one patience; a status for each.
  std::vector<Status> unregister(std::span<const RegionId> ids, Duration patience);
  // Loads and opens the fabrics of plug-ins that the config names, and says in it which one "rdma" has come to.
  // REQUIRES: the registry and the loop are there.
  Status open_plugins();
  Status open_rdma();
  // Either all rails of it, one at each host, or none. `by_device`: it must be a device that moves the bytes.
  Status open_plugin(const std::string& name, const std::vector<std::string>& hosts, bool by_device);
  std::vector<plugin::Node*> open_nodes() const;
};

// The memory kinds that every engine has.
Result<MemoryKinds> known_kinds(const EngineConfig& config);

struct PeerHandle {
  std::shared_ptr<EngineState> engine;
  EngineCore::PeerIndex index = 0;
  std::string address;
  std::shared_ptr<PeerView> view;
};

struct TransferHandle {
  std::shared_ptr<EngineState> engine;
  std::shared_ptr<PeerHandle> peer;
  std::shared_ptr<TransferTask> task;
};

}  // namespace kvferry::detail
