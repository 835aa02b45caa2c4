#pragma once

#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/config.h"
#include "engine/fabric/tcp/owner.h"
#include "engine/memory/registry.h"
#include "engine/run/peer.h"
#include "engine/session/acceptor.h"
#include "engine/session/owner_session.h"

namespace kvferry {

// Notifications that peers sent and the application has not taken. Thread-safe.
class NotificationQueue {
 public:
  NotificationQueue(size_t max_count, size_t max_bytes) : max_count_(max_count), max_bytes_(max_bytes) {}
  Status push(ReceivedNotification received);
  std::vector<ReceivedNotification> take();

 private:
  const size_t max_count_;
  const size_t max_bytes_;
  std::mutex mutex_;
  std::deque<ReceivedNotification> queue_;  // GUARDED_BY(mutex_)
  size_t bytes_ = 0;                        // GUARDED_BY(mutex_)
};

// The engine without threads: sessions both ways, peers, regions and their quiet, on whatever Loop and Network it is
// given; the simulator runs this very class. On loop only.
class EngineCore {
 public:
  // Everything outlives the core.
  struct Parts {
    Loop& loop;
    Network& network;
    Random& random;
    const Clock& clock;
    GateWords& words;
    Registry& registry;
    CompletionHub& hub;
    NotificationQueue& notifications;
    local::Copier* copier;           // null: no local fabric
    std::function<void(Task)> post;  // from any thread onto the loop
    MetricsRegistry& metrics;
    std::shared_ptr<Logger> logger;
    HostIdentity host;
    std::vector<plugin::Node*> nodes = {};  // of the fabrics of plug-ins, best first
    std::string rdma = {};                  // JSON: what the wish for it has come to; empty: there was none
  };
  using TaskPtr = std::shared_ptr<TransferTask>;
  using PeerIndex = size_t;

  EngineCore(Parts parts, const EngineConfig& config);
  ~EngineCore();

  Status listen();
  const Address& address() const { return address_; }
  const Identity& identity() const { return identity_; }

  // The same peer for the same address, for as long as the engine lives.
  Result<PeerIndex> find_or_add_peer(const Address& address);
  const std::shared_ptr<PeerView>& view_of(PeerIndex peer) const { return peers_[peer]->view(); }
  Peer& peer(PeerIndex index) { return *peers_[index]; }
  tcp::Owner& lanes() { return lanes_; }
  // Who answers for parcels; before listen(). Sessions and the desk end with the core.
  void set_parcel_desk(ParcelDesk* desk) { desk_ = desk; }
  // Ends what else uses a region, whose end is then waited for.
  void on_region_closing(std::function<void(const RegionState&)> end_users) { end_users_ = std::move(end_users); }
  void connect(PeerIndex peer, std::function<void(Status)> connected);
  void sync(PeerIndex peer, std::function<void(Status)> synced) { peers_[peer]->sync(std::move(synced)); }
  void submit(PeerIndex peer, const TaskPtr& task) { peers_[peer]->submit(task); }
  void cancel(PeerIndex peer, const TaskPtr& task, const Error& why) { peers_[peer]->cancel(task, why); }

  // Tells the peers' copies of the region table what changed.
  void announce_regions();
  // I4: ends the region's generation and every use of it, then calls `quiet`: ok, or not_quiet when a stopped local
  // writer is still in it at `deadline`; then the range stays quarantined and `quiet_again` is called when that ends.
  void unregister(RegionId region, TimePoint deadline, std::function<void(Status)> quiet, Task quiet_again);

  std::string describe() const;
  // Ends all sessions; every transfer gets its outcome.
  void shut_down();

 private:
  struct Closing {
    std::shared_ptr<RegionState> region;
    TimePoint deadline;
    std::function<void(Status)> quiet;  // empty once called
    Task quiet_again;
    uint64_t version;      // of the region table without it
    TimePoint fence_late;  // then peers that have not said that they are through are cut off
  };
  Status admit_session(const std::string& host) const;
  void session_came(std::unique_ptr<Stream> stream);
  void lane_came(std::unique_ptr<Stream> stream, const LanePreface& lane);
  void replace_session(const OwnerSession& session, uint64_t old);
  void session_ended(OwnerSession& session, const Error& why);
  void check_closing();
  bool is_quiet(const Closing& closing);
  void fence_late(const Closing& closing);
  std::string describe_fabrics() const;

  const Parts parts_;
  const EngineConfig& config_;
  Identity identity_;
  Address address_;
  Staging staging_;
  tcp::Owner lanes_;
  std::function<void(const RegionState&)> end_users_;
  ParcelDesk* desk_ = nullptr;
  local::Owner local_owner_;
  TransferMetrics transfer_metrics_;
  Counter& strangers_;
  Complaints complaints_;
  Gauge& sessions_gauge_;
  std::shared_ptr<FrameRoom> came_room_;  // of the sessions that came
  std::shared_ptr<FrameRoom> dialled_room_;
  std::unordered_map<uint64_t, std::unique_ptr<OwnerSession>> sessions_;  // by session id
  std::unordered_map<std::string, size_t> sessions_by_host_;
  std::vector<std::unique_ptr<Peer>> peers_;
  std::map<Address, PeerIndex> peers_by_address_;
  std::list<Closing> closing_;
  Timer quiet_poll_;
  std::unique_ptr<Acceptor> acceptor_;
};

}  // namespace kvferry
