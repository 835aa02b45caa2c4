#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/random.h"
#include "engine/fabric/local/attach.h"
#include "engine/fabric/tcp/path.h"
#include "engine/memory/region_table.h"
#include "engine/session/frames.h"
#include "engine/session/identity.h"
#include "engine/session/preface.h"

namespace kvferry {

// What whole deltas have changed since a table was made. A new one takes time in the size of the table, however short
// the delta (I6): it is made once for all that came in one go, and before an answer to sync(), for which this side has
// asked.
struct RegionChanges {
  std::map<RegionId, RegionInfo> added;
  std::vector<RegionId> removed;
  bool reset = false;
  uint64_t version = 0;
};

// One session seen by the engine that dialled: from the connect to its end, it keeps the copy of the peer's regions,
// opens lanes and the local link, and carries notifications. A peer that comes back gets a new session. On loop only.
//
//   from        event                                to
//   greeting    welcome                              syncing
//   syncing     whole region table, local settled    ready
//   any         refusal, silence, broken connection  over
class InitiatorSession final : public tcp::LaneSource, private FramesHandler {
 public:
  // Everything outlives the session.
  struct Context {
    Loop& loop;
    Network& network;
    const Identity& identity;
    Random& random;
    bool use_local;  // try the local fabric
    Frames::Limits frame_limits;
    size_t max_regions;  // of a peer (I6)
    Duration connect_patience;
    uint64_t replaces;  // the id of the session that was here before; 0: none
    std::function<void()> ready;
    std::function<void()> regions_changed;
    std::function<void(const proto::Frame&)> parcel_answer;  // ticket, verdict, released
    // This side is about to end the session. True: nothing of it is under way at the peer, nor will it be.
    std::function<bool()> leaving;
    // The session is over; called once, never from the constructor. Its owner destroys it in a later turn.
    std::function<void(const Error&)> ended;
  };

  // What is known of the peer.
  struct PeerFacts {
    std::string engine_id;
    uint64_t incarnation = 0;
    HostIdentity host;
    std::map<std::string, std::string> fabrics;  // where those of plug-ins listen, by name
  };
  using NotifyDone = std::function<void(Status)>;

  InitiatorSession(Context context, std::unique_ptr<Stream> stream, Address address, std::string expected_engine_id);
  ~InitiatorSession() override;

  bool ready() const { return state_ == State::ready; }
  const PeerFacts& peer() const { return peer_; }
  const std::shared_ptr<const RegionTable>& regions() const { return regions_; }
  uint64_t regions_version() const { return regions_version_; }
  // Tells the owner that nothing of ours is under way to regions that were gone at that version of its table.
  void tell_regions_quiet(uint64_t version);
  // Tells the owner that nothing of ours begins any more to such regions; something may be under way.
  void tell_regions_known(uint64_t version);
  // The attached link, or null and why not.
  const std::shared_ptr<local::Link>& link() const { return link_; }
  const std::string& why_not_local() const { return why_not_local_; }
  Duration round_trip() const { return round_trip_; }

  // Delivered behind everything that completed before (I8). REQUIRES: ready().
  void notify(const Notification& notification, NotifyDone done);

  // Runs `synced` when everything that the peer has sent until now (changes of its regions, above all) is known here.
  void sync(Task synced);
  uint64_t id() const { return session_id_; }
  // For a fabric that finds out before the connection does: the peer has ended the session.
  void lose(const Error& why);
  // Whether it was the peer that ended it, as against its silence or this side's wish.
  bool ended_by_peer() const { return ended_by_peer_; }
  // Since the last sign of life.
  Duration silence() const { return context_.loop.now() - last_heard_; }

  Result<std::optional<NewLane>> open_lane(Task again) override;
  void fence_lane(uint32_t id, Task fenced) override;

  // A claim, settle, release or extend. REQUIRES: ready().
  void send_parcel(const proto::Frame& frame) { frames_.send(frame); }
  // One that the reader waits for no answer to: it leaves with the next frame, or before the loop sleeps.
  void send_parcel_at_leisure(const proto::Frame& frame);

  // Ends the session from this side, telling the peer why.
  void end(const Error& why);

 private:
  enum class State { greeting, syncing, ready, over };

  void on_frame(const proto::Frame& frame) override;
  void on_frames_lost(Error error) override;
  void on_frames_drained() override;
  void send_notify(const Notification& notification, NotifyDone done);
  void send_hello(const std::string& expected_engine_id);
  void on_welcome(const proto::Frame& frame);
  void on_regions(const proto::Frame& frame);
  void keep_for_table(uint64_t version);
  void apply_regions();
  Error too_many_regions() const;
  static Error too_many_keys();
  void on_attached(const proto::Frame& frame);
  void on_notify_ack(const proto::Frame& frame);
  void on_heartbeat(const proto::Frame& frame);
  template <class Tokens>
  void keep_tokens(const Tokens& tokens);
  void start_attach(uint64_t challenge);
  void settle_without_local(std::string why);
  void become_ready_if_synced();
  void beat();
  void finish(const Error& why);

  const Context context_;
  const Address address_;
  State state_ = State::greeting;
  PeerFacts peer_;
  uint64_t session_id_ = 0;
  bool ended_by_peer_ = false;

  std::shared_ptr<const RegionTable> regions_ = std::make_shared<RegionTable>();
  uint64_t regions_version_ = 0;
  std::vector<RegionInfo> added_;  // of the delta that is arriving
  size_t added_key_bytes_ = 0;     // since the last table was made
  std::vector<RegionId> removed_;
  bool reset_ = false;
  std::optional<RegionChanges> changes_;
  bool regions_known_ = false;

  std::shared_ptr<local::Link> attaching_;
  std::shared_ptr<local::Link> link_;
  std::string why_not_local_;
  bool local_settled_ = false;

  std::deque<std::string> tokens_;
  std::vector<Task> waiting_for_tokens_;
  uint32_t next_lane_ = 1;

  uint64_t next_number_ = 1;
  std::unordered_map<uint64_t, NotifyDone> notifies_;
  std::deque<std::pair<Notification, NotifyDone>>
      held_;  // each belongs to a transfer in flight, which bounds them (I6)
  std::unordered_map<uint64_t, Task> fences_;
  std::unordered_map<uint64_t, Task> syncs_;

  TimePoint last_heard_;
  TimePoint last_beat_;
  Duration round_trip_{0};
  Timer watch_;
  Frames frames_;
  bool flush_planned_ = false;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvferry
