#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/fabric/loopback/loopback.h"
#include "engine/parcel/owner.h"
#include "engine/parcel/reader.h"
#include "engine/run/core.h"
#include "test/simulator/sim_network.h"

// One engine with a KV cache in virtual time, for tests of the parcel protocol that need clocks and wires in hand.

namespace kvferry::test {

// Time, wires and hosts of one test.
struct ParcelScene {
  explicit ParcelScene(size_t hosts = 6) : wires(timeline, random, history, hosts, {}) {}

  // Lets time pass until `done`; false: it is not done after `patience`.
  bool run_until(Duration patience, const std::function<bool()>& done) {
    const TimePoint until = timeline.now() + patience;
    while (!done())
      if (!timeline.step(until) && timeline.now() >= until) return done();
    return true;
  }
  void run_for(Duration span) {
    run_until(span, [] { return false; });
  }

  simulator::Timeline timeline;
  simulator::History history{timeline, false};
  SeededRandom random{1};
  simulator::Wires wires;
  std::shared_ptr<loopback::Hub> hub;  // given before the nodes that use it
};

struct NodeOptions {
  std::string name;
  uint32_t tp = 1;
  uint32_t tp_rank = 0;
  uint32_t blocks = 64;
  uint32_t layers = 2;
  ParcelLimits limits;
};

class ParcelNode {
 public:
  static constexpr uint32_t kBlockTokens = 16;
  static constexpr size_t kHeadBytes = 2 * kBlockTokens * 64 * 2;  // K and V of one head of a block and layer

  ParcelNode(ParcelScene& scene, simulator::HostIndex host, NodeOptions options)
      : scene_(scene),
        host_(host),
        options_(std::move(options)),
        memory(size_t{options_.layers} * options_.blocks * heads() * kHeadBytes) {
    start();
  }
  ~ParcelNode() { kill(false); }

  // The process ends as by SIGKILL, perhaps with its machine.
  void kill(bool silently) {
    if (!process) return;
    process->loop.stop();
    if (silently) scene_.wires.set_up(host_, false);
    scene_.wires.drop_host(host_, silently);
    process.reset();
  }
  void start() {
    scene_.wires.set_up(host_, true);
    process = std::make_unique<Process>(*this);
  }

  EngineCore& core() { return *process->core; }
  ParcelOwner& owner() { return *process->owner; }
  ParcelReader& reader() { return *process->reader; }
  Address address() const { return simulator::Wires::address_of(host_); }
  const std::string& name() const { return options_.name; }
  TimePoint now() const { return process->loop.now(); }
  std::string metrics() const { return process->metrics.expose(); }
  KvLayout layout() const { return process->layout; }
  RegionId region() const { return process->region; }
  EngineCore::PeerIndex peer(const ParcelNode& other) {
    auto index = core().find_or_add_peer(other.address());
    KVF_CHECK(index.ok());
    return *index;
  }

  // All events so far, taken.
  std::vector<ParcelReleased> released() { return process->events.take(); }

  void fill(std::byte value) { std::fill(memory.begin(), memory.end(), value); }
  void fill_block(uint32_t block, std::byte value) {
    const size_t page = heads() * kHeadBytes;
    for (size_t layer = 0; layer < options_.layers; ++layer)
      std::fill_n(memory.begin() + static_cast<ptrdiff_t>((layer * options_.blocks + block) * page), page, value);
  }
  // Whether every byte of a block, over all layers, is `value`.
  bool block_is(uint32_t block, std::byte value) const {
    const size_t page = heads() * kHeadBytes;
    for (size_t layer = 0; layer < options_.layers; ++layer) {
      const auto at = memory.begin() + static_cast<ptrdiff_t>((layer * options_.blocks + block) * page);
      if (!std::all_of(at, at + static_cast<ptrdiff_t>(page), [&](std::byte b) { return b == value; })) return false;
    }
    return true;
  }
  // In the first layer.
  bool block_begins_with(uint32_t block, std::byte value) const {
    return memory[block * heads() * kHeadBytes] == value;
  }

 private:
  uint32_t heads() const { return 2 / options_.tp; }

  struct LoopClock final : Clock {
    explicit LoopClock(const Loop& the_loop) : loop(the_loop) {}
    TimePoint now() const override { return loop.now(); }
    const Loop& loop;
  };
  struct Process {
    explicit Process(ParcelNode& node)
        : random(node.scene_.random.next()),
          loop(node.scene_.timeline, random, std::chrono::milliseconds(random.below(1'000'000)), [] {}),
          network(node.scene_.wires, node.host_, loop),
          notifications(16, 65536) {
      config.engine_id = node.options_.name;
      config.listen = node.address().to_string();
      config.fabrics = {"tcp"};
      if (node.scene_.hub) config.fabrics = {"loopback", "tcp"};
      config.loopback = node.scene_.hub;
      config.logger = node.scene_.history.logger(node.options_.name);
      auto made = GateWords::create();
      KVF_CHECK(made.ok());
      words = std::move(*made);
      MemoryKinds kinds;
      kinds.add(make_host_memory());
      registry = std::make_unique<Registry>(std::move(kinds), *words, 64, 1 + (random.next() >> 2));
      core = std::make_unique<EngineCore>(
          EngineCore::Parts{loop, network, random, clock, *words, *registry, hub, notifications, nullptr,
                            [this](Task task) { loop.defer(std::move(task)); }, metrics, config.logger,
                            HostIdentity{node.options_.name, 1, 1, 1}},
          config);
      owner = std::make_unique<ParcelOwner>(
          ParcelOwner::Parts{loop, *words, *registry, core->lanes(), random, metrics, events}, node.options_.limits);
      reader = std::make_unique<ParcelReader>(*core, loop, *registry);
      core->set_parcel_desk(owner.get());
      KVF_CHECK(core->listen().ok());
      auto added = registry->add(node.memory.data(), node.memory.size(), MemoryKind::host, kPrivate);
      KVF_CHECK(added.ok());
      region = added->id;
      describe(node);
      KVF_CHECK(owner->set_cache(node.options_.name + "-instance", layout).ok());
    }
    ~Process() {
      loop.stop();
      owner->shut_down();
      core->shut_down();
      reader.reset();
      core->set_parcel_desk(nullptr);
      owner.reset();
      core.reset();
      loop.drain();
    }
    void describe(const ParcelNode& node) {
      layout.rank.tp_size = node.options_.tp;
      layout.rank.tp_rank = node.options_.tp_rank;
      layout.layers_total = node.options_.layers;
      KvGroup group;
      group.block_tokens = kBlockTokens;
      group.block_count = node.options_.blocks;
      group.heads_total = 2;
      group.heads_local = node.heads();
      group.head_size_k = group.head_size_v = 64;
      group.element_bits = 16;
      layout.groups = {group};
      const uint64_t plane = uint64_t{node.options_.blocks} * node.heads() * kHeadBytes;
      for (uint32_t layer = 0; layer < node.options_.layers; ++layer)
        layout.layers.push_back(
            dense_layer(layer, 0, group, PageShape::head_major, KvOrder::in_block, region, layer * plane));
    }
    SeededRandom random;
    simulator::SimLoop loop;
    LoopClock clock{loop};
    simulator::SimNetwork network;
    EngineConfig config;
    std::unique_ptr<GateWords> words;
    std::unique_ptr<Registry> registry;
    MetricsRegistry metrics;
    CompletionHub hub{[] {}};
    NotificationQueue notifications;
    std::unique_ptr<EngineCore> core;
    ParcelEvents events{hub};
    std::unique_ptr<ParcelOwner> owner;
    std::unique_ptr<ParcelReader> reader;
    RegionId region = 0;
    KvLayout layout;
  };

  ParcelScene& scene_;
  const simulator::HostIndex host_;
  const NodeOptions options_;

 public:
  std::vector<std::byte> memory;
  std::unique_ptr<Process> process;
};

}  // namespace kvferry::test
