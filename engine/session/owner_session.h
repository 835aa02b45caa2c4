#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/random.h"
#include "engine/fabric/fabric.h"
#include "engine/fabric/local/attach.h"
#include "engine/fabric/plugin/guests.h"
#include "engine/fabric/tcp/owner.h"
#include "engine/memory/registry.h"
#include "engine/session/frames.h"
#include "engine/session/identity.h"
#include "engine/session/preface.h"

namespace kvferry {

class OwnerSession;

struct FabricGuests {
  std::string fabric;
  plugin::Guests* guests;
};

// Who answers what a session says about parcels (engine/parcel/owner.h). On loop only.
class ParcelDesk {
 public:
  virtual ~ParcelDesk() = default;
  virtual void on_parcel_frame(OwnerSession& reader, const proto::Frame& frame) = 0;
  // A session of this reader stands, or stood. A reader that is back within the owner's grace keeps its claims.
  virtual void on_reader_came(OwnerSession& reader) = 0;
  virtual void on_reader_left(OwnerSession& reader) = 0;
};

// One session seen by the engine that was dialled: it tells its regions, answers, and decides what the peer's lanes may
// still apply. On loop only.
class OwnerSession final : public Guest, private FramesHandler {
 public:
  struct Limits {
    size_t lanes = 16;
    int unread_lane = 10;             // a lane that takes nothing for so many patiences ends the session (I6)
    size_t regions_per_frame = 2048;  // at most, and no more than fit
  };
  // Everything outlives the session.
  struct Context {
    Loop& loop;
    const Identity& identity;
    Registry& registry;
    tcp::Owner& lanes;
    local::Owner* local;               // null: this engine does not offer the local fabric
    std::vector<FabricGuests> guests;  // of the fabrics of plug-ins
    ParcelDesk* parcels;               // null: no parcels here
    Random& random;
    Limits limits;
    Frames::Limits frame_limits;
    // Puts a notification before the application; an Error is told to the sender.
    std::function<Status(ReceivedNotification)> deliver;
    // The session is over; called once, never from the constructor. Its owner destroys it in a later turn.
    std::function<void(OwnerSession&, const Error&)> ended;
    // The peer says that this session stands for the one with that id.
    std::function<void(const OwnerSession&, uint64_t)> replaces;
  };

  OwnerSession(Context context, std::unique_ptr<Stream> stream);
  ~OwnerSession() override;

  uint64_t session_id() const { return session_id_; }
  std::string peer_address() const { return frames_.peer_address(); }
  // The peer's name once it has said hello.
  const std::string& engine_id() const override { return engine_id_; }
  uint64_t incarnation() const override { return incarnation_; }
  void send(const proto::Frame& frame) { frames_.send(frame); }
  bool still_welcome() override;

  // A connection that names this session in its preface. Each token opens one lane.
  void adopt_lane(std::unique_ptr<Stream> stream, const LanePreface& lane);
  // Tells the peer what changed in the registry since it was told last.
  void send_regions();
  // Ends the session from this side, telling the peer why.
  void end(const Error& why);

 private:
  void on_frame(const proto::Frame& frame) override;
  void on_frames_lost(Error error) override { finish(error); }
  void on_hello(const proto::Frame& frame);
  Status judge(const proto::Frame& frame);
  void on_attach(const proto::Frame& frame);
  void on_notify(const proto::Frame& frame);
  void on_fence(const proto::Frame& frame);
  // Whoever used our memory through this session does so no more.
  void dismiss();
  void send_welcome();
  std::string fresh_token();
  // I4: false, and the session over, when the last sign of life is too long ago by our own clock.
  bool in_time();
  void watch_over_peer();
  bool takes_answers();
  void finish(const Error& why);

  const Context context_;
  const uint64_t session_id_;
  const uint64_t challenge_;
  std::string engine_id_;
  uint64_t incarnation_ = 0;
  HostIdentity peer_host_;
  bool greeted_ = false;
  bool over_ = false;
  std::set<std::string> tokens_;
  std::set<uint32_t> fenced_lanes_;  // a lane may be fenced before its connection arrives
  uint64_t regions_sent_ = 0;        // registry version
  TimePoint last_heard_;
  Timer watch_;
  Frames frames_;
};

}  // namespace kvferry
