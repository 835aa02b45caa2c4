#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "common/log.h"
#include "common/metrics.h"
#include "engine/fabric/local/copier.h"
#include "engine/fabric/loopback/loopback.h"
#include "engine/fabric/plugin/rails.h"
#include "engine/fabric/tcp/fetch_path.h"
#include "engine/run/transfer_task.h"
#include "engine/session/complaints.h"
#include "engine/session/initiator_session.h"

namespace kvferry {

// What callers' threads may know of a peer: enough to copy from and to it on the same host without the loop.
class PeerView {
 public:
  struct Snapshot {
    std::shared_ptr<local::Link> link;  // null: not attached
    std::shared_ptr<const RegionTable> regions;
    std::string engine_id;
    uint64_t incarnation = 0;
    bool ready = false;
  };
  Snapshot get() const {
    const std::lock_guard lock(mutex_);
    return snapshot_;
  }
  void set(Snapshot snapshot) {
    const std::lock_guard lock(mutex_);
    snapshot_ = std::move(snapshot);
  }

 private:
  mutable std::mutex mutex_;
  Snapshot snapshot_;
};

// Another engine, by its address: dials when it is needed, holds transfers until the session stands, chooses their
// fabric, and gives each its outcome whatever becomes of the session (I3, I5). On loop only.
class Peer {
 public:
  // Everything outlives the peer.
  struct Context {
    Loop& loop;
    Network& network;
    const Identity& identity;
    Random& random;
    Staging& staging;
    local::Copier* copier;  // null: no local fabric here
    const Clock& clock;
    bool use_tcp;
    std::vector<plugin::Node*> nodes = {};  // of the fabrics of plug-ins, best first, each with its rails in a row
    tcp::PathOptions tcp_options;
    Duration connect_patience;
    size_t max_regions;
    std::shared_ptr<FrameRoom> frame_room;
    std::function<void(Task)> post;           // from any thread
    std::shared_ptr<loopback::Hub> loopback;  // null: not named in the config
    CompletionHub& hub;
    TransferMetrics metrics;
    std::shared_ptr<Logger> logger;
    Complaints& complaints;
  };
  using TaskPtr = std::shared_ptr<TransferTask>;

  Peer(Context context, Address address);
  ~Peer();

  void submit(const TaskPtr& task);
  void cancel(const TaskPtr& task, const Error& why);
  // Ends every transfer that uses the local region (unregister, as initiator).
  void cancel_users_of(const RegionState& region);
  // Calls back when the session stands, or with the reason why it does not.
  void connect(std::function<void(Status)> connected);
  // Calls back when the peer's region table is known as it was when this was called.
  void sync(std::function<void(Status)> synced);
  void shut_down(const Error& why);

  // For parcels: the session that stands now and its ways, or null.
  InitiatorSession* session() const { return session_ && session_->ready() ? session_.get() : nullptr; }
  OneSidedPath* one_sided_path() const { return one_sided_path_.get(); }
  tcp::FetchPath* fetch_path() const { return fetch_path_.get(); }
  // Who hears the peer's answers about parcels, and of the end of its session. At most one.
  struct ParcelListener {
    std::function<void(const proto::Frame&)> answer;
    std::function<void(const Error&)> session_ended;
  };
  void set_parcel_listener(ParcelListener listener) { parcels_ = std::move(listener); }

  const Address& address() const { return address_; }
  const std::shared_ptr<PeerView>& view() const { return view_; }
  std::string describe() const;
  size_t live_transfers() const { return tasks_.size(); }

 private:
  // Transfers begin and end in the order in which they were asked for.
  struct Older {
    bool operator()(const TaskPtr& a, const TaskPtr& b) const { return a->id != b->id ? a->id < b->id : a < b; }
  };
  void ensure_session();
  void dial();
  void back_off();
  void on_ready();
  void on_session_ended(const Error& why);
  void on_regions_changed();
  void choose_one_sided();
  std::unique_ptr<RevocablePath> make_plugin_path();
  std::vector<plugin::RailsPath::Way> make_ways(size_t first, const std::string& owner, bool several);
  void publish_view();
  void begin(const TaskPtr& task);
  void on_event(const TaskPtr& task, const Status& status);
  void begin_move(const TaskPtr& task);
  void on_moved(const TaskPtr& task, Status status);
  void start_on(const TaskPtr& task, Path& path);
  void begin_notify(const TaskPtr& task);
  Result<Path*> choose_path(const Job& job);
  void on_deadline(const TaskPtr& task);
  void give_up(const TaskPtr& task, const Error& why, bool wait_for_far_side);
  void finish(const TaskPtr& task, Status status, RemoteQuiet remote);
  Error explain(const TransferTask& task, const Error& why) const;
  bool await_next_session(const TaskPtr& task);
  void fail_connecting(const Error& why, bool session_ended_by_peer = false);

  Context context_;
  const Address address_;
  const std::shared_ptr<PeerView> view_ = std::make_shared<PeerView>();
  std::string last_engine_id_;
  uint64_t last_session_id_ = 0;
  std::unique_ptr<InitiatorSession> session_;
  std::unique_ptr<OneSidedPath> one_sided_path_;  // local, a plug-in's, or loopback in tests
  RevocablePath* plugin_path_ = nullptr;          // the same, where it is a plug-in's
  std::string why_no_plugin_;                     // "; fabric: reason" of each that is not taken
  std::unique_ptr<tcp::TcpPath> tcp_path_;
  std::unique_ptr<tcp::FetchPath> fetch_path_;
  ParcelListener parcels_;
  std::set<TaskPtr, Older> tasks_;
  std::list<std::function<void(Status)>> connecting_;
  std::list<std::function<void(Status)>> syncing_;  // for the session's answer
  Duration backoff_{0};
  TimePoint next_dial_{};
  Timer redial_;
  std::string last_error_;
};

}  // namespace kvferry
