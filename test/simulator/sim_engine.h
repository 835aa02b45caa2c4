#pragma once

#include <memory>
#include <string>

#include "engine/fabric/loopback/loopback.h"
#include "engine/parcel/owner.h"
#include "engine/parcel/reader.h"
#include "engine/run/core.h"
#include "test/simulator/sim_device.h"
#include "test/simulator/sim_network.h"

namespace kvferry::simulator {

// One machine of a world, and the engine that runs on it: started, killed and started again, always at the same
// address and with the same name. The engine is the product's own EngineCore; only its loop and network are simulated.
class SimEngine {
 public:
  struct Hooks {
    std::function<void(SimEngine&)> after_turn;
  };
  struct Fittings {
    std::shared_ptr<loopback::Hub> hub;  // a one-sided fabric to all others that have it; null: none
    size_t staging_bytes = size_t{64} << 20;
  };
  SimEngine(Timeline& timeline, Wires& wires, History& history, HostIndex host, uint64_t seed, Fittings fittings,
            Hooks hooks);
  ~SimEngine();

  // ---- its life
  void start();
  // The process ends as by SIGKILL; `silently`: the machine goes with it and says nothing until start().
  void kill(bool silently);
  bool running() const { return process_ != nullptr; }
  // A running process that may call its engine now: neither stopped nor in the middle of a turn.
  bool may_call() const { return process_ && !process_->loop.paused() && !process_->loop.in_turn(); }
  // Counts starts: which of the processes at this address.
  uint64_t life() const { return life_; }

  // ---- REQUIRES: running()
  EngineCore& core() const { return *process_->core; }
  Registry& registry() const { return *process_->registry; }
  SimLoop& loop() const { return process_->loop; }
  NotificationQueue& notifications() const { return process_->notifications; }
  ParcelOwner& parcel_owner() const { return *process_->parcel_owner; }
  ParcelReader& parcel_reader() const { return *process_->parcel_reader; }
  ParcelEvents& parcel_events() const { return process_->parcel_events; }
  SimDevice& device() const { return *process_->device; }
  // One of the engine's gauges, by its name.
  int64_t gauge(const std::string& metric) const;
  int64_t sessions() const { return gauge("kvferry_sessions"); }

  HostIndex host() const { return host_; }
  Address address() const { return Wires::address_of(host_); }
  const std::string& name() const { return name_; }
  // This machine's memory, at the same address in every run: the order of addresses must not change a history.
  std::byte* memory() const;
  static constexpr size_t kMemory = size_t{16} << 20;
  static constexpr size_t kMaxHosts = 64;
  static constexpr Duration kLongestLease = std::chrono::seconds(75);  // of a parcel, with extensions

 private:
  struct LoopClock final : Clock {
    explicit LoopClock(const Loop& the_loop) : loop(the_loop) {}
    TimePoint now() const override { return loop.now(); }
    const Loop& loop;
  };
  // One incarnation, in the order in which it must be built: an engine's, where memory outlives the loop.
  struct Process {
    Process(SimEngine& engine, uint64_t seed);
    ~Process();
    SeededRandom random;
    MetricsRegistry metrics;
    const std::shared_ptr<SimDevice> device = std::make_shared<SimDevice>();
    std::unique_ptr<GateWords> words;
    std::unique_ptr<Registry> registry;
    SimLoop loop;
    LoopClock clock{loop};
    SimNetwork network;
    EngineConfig config;
    CompletionHub hub{[] {}};
    NotificationQueue notifications;
    std::unique_ptr<EngineCore> core;
    ParcelEvents parcel_events{hub};
    std::unique_ptr<ParcelOwner> parcel_owner;
    std::unique_ptr<ParcelReader> parcel_reader;
  };

  Timeline& timeline_;
  Wires& wires_;
  History& history_;
  const HostIndex host_;
  const std::string name_;
  SeededRandom seeds_;
  const Fittings fittings_;
  const Hooks hooks_;
  uint64_t life_ = 0;
  std::unique_ptr<Process> process_;
};

}  // namespace kvferry::simulator
