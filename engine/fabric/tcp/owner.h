#pragma once

#include <functional>
#include <list>
#include <memory>
#include <unordered_map>
#include <vector>

#include "engine/fabric/fabric.h"
#include "engine/fabric/tcp/lane.h"
#include "engine/memory/registry.h"

namespace kvferry::tcp {

// A stream that answers a fetch, made by the layer that knows what is fetched. Destroyed when it has been sent whole or
// its lane is gone. On loop only.
class FetchSource {
 public:
  virtual ~FetchSource() = default;
  virtual std::string head() = 0;
  // Whether next() or at_end() has something to say now. When not, the source calls Owner::resume() once it has.
  virtual bool ready() const = 0;
  // The next bytes, at most `max_bytes`: host memory that stays as it is until the stream is destroyed or stopped, or
  // that lies in the piece's own buffer. REQUIRES: ready().
  struct Piece {
    std::vector<iovec> bytes;
    Staging::Buffer staging;
  };
  virtual Piece next(uint64_t max_bytes) = 0;
  virtual bool at_end() const = 0;
  // What follows the bytes, as things stand now.
  virtual std::string trailer() = 0;
};

class FetchDesk {
 public:
  virtual ~FetchDesk() = default;
  using Answer = std::function<void(Result<std::shared_ptr<FetchSource>>)>;
  // Calls `answer` once, now or later on the loop.
  virtual void on_fetch(Guest& guest, ByteSpan request, Answer answer) = 0;
};

// The owner's side of the tcp fabric: checks what peers ask of this engine's regions, and moves the bytes. On loop
// only.
class Owner final : private LaneHandler {
 public:
  Owner(Loop& loop, Registry& registry, Staging& staging) : loop_(loop), registry_(registry), staging_(staging) {}
  ~Owner() override;

  // Who answers fetches; without one they are refused. It outlives this, or is set to null.
  void set_desk(FetchDesk* desk) { desk_ = desk; }
  // I2: when this returns, the stream's memory is touched no more; what the reader still gets is waste, and the trailer
  // is asked for anew. The source must be at its end.
  void stop(FetchSource& source);
  // A source that was not ready is.
  void resume(const FetchSource& source);
  // Pieces that sources stage, and events that they wait for.
  Staging& staging() { return staging_; }

  static constexpr uint64_t kPieceBytes = uint64_t{1} << 20;  // what is asked of a source at a time

  // A lane of `guest`, whose preface has been read. `guest` must call drop_guest() before it goes.
  void adopt(Guest& guest, std::unique_ptr<Stream> stream, uint32_t lane_id);
  void drop_guest(const Guest& guest);
  size_t lanes_of(const Guest& guest) const;
  // I6: for how long a lane of the guest's has taken nothing of what waits for it, at most. To be asked now and then:
  // what is seen to wait counts from then on.
  Duration held_up_by(const Guest& guest);

  // I4: when this returns, nothing more from that lane is applied; also right when there is no such lane.
  void close_lane(const Guest& guest, uint32_t lane_id);
  // Unregister: what is being sent from or received into the region stops; its pins go, at once or (device copies in
  // flight) when the copy has landed.
  void fence_region(const RegionState& region);

  uint64_t bytes_served() const { return bytes_served_; }

 private:
  // Replies of one lane that wait to leave, or for a copy, before its input is paused; each holds at most kMaxSpans
  // iovecs (I6).
  static constexpr size_t kMaxQueuedReplies = 16;

  struct Spans {
    Status status;  // why the request is refused
    std::vector<RemoteSpan> list;
    std::vector<RegionPin> pins;     // one a run of spans in the same region
    std::vector<std::byte*> places;  // by span
    uint64_t bytes = 0;
  };
  struct Streaming {
    uint64_t op;
    std::shared_ptr<FetchSource> source;
    bool head_sent = false;
  };
  struct Served {
    uint64_t number = 0;  // in the order of adopt()
    Guest* guest = nullptr;
    std::unique_ptr<Lane> lane;
    Spans writing;            // of the write whose payload is arriving
    Staging::Buffer staging;  // where it arrives, for memory that the CPU cannot touch
    std::list<Streaming> streams;
    size_t being_copied = 0;   // reads and writes of memory that the CPU cannot touch, not answered yet
    size_t fetches_asked = 0;  // not answered by the desk yet
    bool pumping = false;      // in pump(), which drains the lane, which asks for more
    uint64_t sent_before = 0;  // as held_up_by() has seen it last, and since when
    TimePoint sent_since{};
  };
  using ServedPtr = std::shared_ptr<Served>;

  Result<std::vector<iovec>> on_frame(Lane& lane, const Header& header, ByteSpan table) override;
  bool may_scatter(Lane& lane) override;
  void on_frame_end(Lane& lane, const Header& header) override;
  void on_drained(Lane& lane) override;
  void on_lost(Lane& lane, Error error) override;

  Result<Spans> resolve(ByteSpan table, uint32_t permission);
  void serve_read(const ServedPtr& served, const Header& header, Spans spans);
  void serve_staged_read(const ServedPtr& served, uint64_t op, Spans spans);
  Result<std::vector<iovec>> accept_write(Served& served, const Header& header, Spans spans);
  void finish_staged_write(const ServedPtr& served, uint64_t op);
  void reply(Served& served, FrameType type, uint64_t op, const Status& status);
  void pace(Served& served);
  ServedPtr find(const Lane& lane) const;
  Result<std::vector<iovec>> accept_fetch(const ServedPtr& served, const Header& header, ByteSpan table);
  void pump(const ServedPtr& served);
  bool send_next(Served& served, Streaming& streaming);
  // A copy in the order of adopt(), so that lanes may be retired while it is walked.
  std::vector<ServedPtr> all() const;
  void retire(const ServedPtr& served, bool reset);

  Loop& loop_;
  Registry& registry_;
  Staging& staging_;
  FetchDesk* desk_ = nullptr;
  std::unordered_map<const Lane*, ServedPtr> served_;
  uint64_t next_number_ = 1;
  uint64_t bytes_served_ = 0;
};

}  // namespace kvferry::tcp
