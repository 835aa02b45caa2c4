#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/api.h"
#include "common/result.h"
#include "engine/config.h"
#include "engine/types.h"

// The whole public face of the transfer engine. Everything here is thread-safe unless it says otherwise; no call
// throws.
//
//   auto engine = Engine::create(config);                                   // both processes
//   auto region = engine->register_memory(base, bytes, MemoryKind::host, kRemoteRead);
//   auto peer = initiator->peer("10.0.0.7:7100");
//   Outcome end = initiator->transfer({*peer, Operation::read, {{local, region_id, offset, bytes}}});

namespace kvferry {

class Engine;
class MemoryOps;
namespace detail {
struct EngineState;
struct TransferHandle;
struct PeerHandle;
}  // namespace detail

// A registered range. Unregisters when it is destroyed, and waits until the range is quiet (I4).
class KVFERRY_API Region {
 public:
  Region() = default;
  Region(Region&& other) noexcept;
  Region& operator=(Region&& other) noexcept;
  ~Region();

  const RegionInfo& info() const { return info_; }
  RegionId id() const { return info_.id; }

  // When it returns ok, nothing on this host or another touches the memory any more: transfers and reads that use it
  // are cancelled, and parcels of a cache in it end. `not_quiet`: a stopped process on this host is in the middle of a
  // write to it; the range is quarantined until that ends. Repeated calls are ok. In a callback it does not wait: what
  // is not quiet at once is `not_quiet`.
  Status unregister(Duration patience = std::chrono::seconds(3));
  // The same for several at once; those of one engine share the patience. A status for each.
  static std::vector<Status> unregister(std::span<Region* const> regions, Duration patience);

 private:
  friend class Engine;
  Region(std::shared_ptr<detail::EngineState> engine, RegionInfo info) : engine_(std::move(engine)), info_(info) {}
  std::shared_ptr<detail::EngineState> engine_;
  RegionInfo info_;
};

// Another engine, as this one knows it. Cheap to copy; sessions come and go behind it.
class KVFERRY_API PeerRef {
 public:
  PeerRef() = default;
  const std::string& address() const;

  // What the peer has told of itself: empty or 0 while no session stands.
  std::string engine_id() const;
  uint64_t incarnation() const;
  // Its regions as this engine knows them now, and the one that holds an address of the peer's address space.
  std::vector<RegionInfo> regions() const;
  std::optional<RegionInfo> find_address(uint64_t address, uint64_t length) const;
  // Establishes the session, if there is none, and waits for the region table.
  Status connect(Duration patience) const;
  // As connect(), and waits until every region is known here that the peer had registered before this call: a round
  // trip.
  Status sync(Duration patience) const;
  // Turns addresses of the peer's address space into spans: sets region and offset of each pair by `addresses` and the
  // pair's length. Where all are found it returns the incarnation that they belong to (TransferRequest::incarnation);
  // not_found otherwise, naming the first that no region holds.
  Result<uint64_t> locate(std::span<const uint64_t> addresses, std::span<Pair> pairs) const;

 private:
  friend class Engine;
  friend class Parcels;
  std::shared_ptr<detail::PeerHandle> handle_;
};

struct TransferRequest {
  PeerRef peer;
  Operation operation = Operation::read;
  std::vector<Pair> pairs;
  // From now; 0 takes EngineConfig::default_timeout.
  Duration timeout{0};
  std::optional<Notification> notify;
  // The one incarnation of the peer that the pairs' regions belong to: another one, which may use the same numbers for
  // other memory, is not touched, and the outcome is peer_lost (I5). 0: whichever there is.
  uint64_t incarnation = 0;
  // An event of the local memory's kind (engine/memory/memory_kind.h): no byte moves before it is done. It lives until
  // the outcome. 0: none.
  uint64_t event = 0;
};

// What an engine tells those who look for it, a bootstrap server's clients for instance.
struct EngineSelf {
  std::string engine_id;
  uint64_t incarnation = 0;  // new at every start (I5)
  std::string address;       // host:port
  std::vector<std::string> fabrics;
  uint32_t protocol_min = 0, protocol_max = 0;  // of sessions
  std::string auth = "open";
  std::vector<RegionInfo> regions;  // registered now
};

// A submitted transfer. Cheap to copy; dropping it does not cancel.
class KVFERRY_API Transfer {
 public:
  Transfer() = default;
  uint64_t id() const;

  bool done() const;
  // The outcome if there is one.
  std::optional<Outcome> poll() const;
  // Waits for the outcome: it comes by the transfer's deadline (I3). Must not be called in a callback.
  Outcome wait() const;
  // As wait(), but gives up waiting, not the transfer, after `patience`.
  std::optional<Outcome> wait_for(Duration patience) const;
  // Runs `callback` once, on the engine's loop, or here when the transfer is done already. It must not block.
  void on_done(std::function<void(const Outcome&)> callback) const;
  // When this returns, no byte moves from or to the transfer's local memory (I4). The outcome follows within a second:
  // `cancelled`, unless it was done before.
  void cancel() const;

 private:
  friend class Engine;
  std::shared_ptr<detail::TransferHandle> handle_;
};

class KVFERRY_API Engine {
 public:
  static Result<std::unique_ptr<Engine>> create(EngineConfig config);
  // With further memory kinds than host.
  static Result<std::unique_ptr<Engine>> create(EngineConfig config, std::vector<std::shared_ptr<MemoryOps>> kinds);
  // Ends every transfer and session. Regions that are left are unregistered.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const std::string& engine_id() const;
  // host:port of the engine's port.
  std::string address() const;
  EngineSelf self() const;

  Result<Region> register_memory(void* base, uint64_t length, MemoryKind kind, uint32_t permissions);
  // All or none; one announcement to the peers.
  Result<std::vector<Region>> register_memory(std::span<const std::pair<void*, uint64_t>> ranges, MemoryKind kind,
                                              uint32_t permissions);

  // What memory lies there: a GPU's where a driver that this process has loaded says so, else the host's.
  MemoryKind kind_of(const void* address) const;

  // A peer by "host:port" (a host name is resolved here and now). Nothing is dialled before it is used.
  Result<PeerRef> peer(const std::string& address);

  // An Error when the request itself is wrong or a limit is reached; everything else is the transfer's outcome.
  Result<Transfer> submit(TransferRequest request);
  // Submits and waits: cheaper than the two calls.
  Outcome transfer(TransferRequest request);
  // A notification alone.
  Result<Transfer> notify(const PeerRef& peer, Notification notification, Duration timeout = Duration(0));
  // Sends one and waits: cheaper than the two calls.
  Outcome notify_and_wait(const PeerRef& peer, Notification notification, Duration timeout = Duration(0));

  // Takes what peers have sent.
  std::vector<ReceivedNotification> notifications();

  // A descriptor that is readable when transfers have ended since the last take_completed(), for event loops. Only
  // transfers that end after the first call of it are counted. Among their ids stand kQuietAgain and kParcelReleased,
  // also for what came before that call: then take all there is.
  Result<int> completion_fd();
  std::vector<uint64_t> take_completed();

  // JSON: identity, peers, fabrics and why, quarantined ranges.
  std::string describe() const;
  // Prometheus' text format.
  std::string metrics() const;

 private:
  friend class Parcels;
  explicit Engine(std::shared_ptr<detail::EngineState> state) : state_(std::move(state)) {}
  std::shared_ptr<detail::EngineState> state_;
};

}  // namespace kvferry
