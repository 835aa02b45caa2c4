#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "engine/fabric/fabric.h"
#include "engine/fabric/tcp/lane.h"
#include "engine/memory/registry.h"

namespace kvferry::tcp {

// The owner's side of the tcp fabric: checks what peers ask of this engine's regions, and moves the bytes. On loop
// only.
class Owner final : private LaneHandler {
 public:
  Owner(Loop& loop, Registry& registry, Staging& staging) : loop_(loop), registry_(registry), staging_(staging) {}
  ~Owner() override;

  // A lane of `guest`, whose preface has been read. `guest` must call drop_guest() before it goes.
  void adopt(Guest& guest, std::unique_ptr<Stream> stream, uint32_t lane_id);
  void drop_guest(const Guest& guest);
  size_t lanes_of(const Guest& guest) const;

  // I4: when this returns, nothing more from that lane is applied; also right when there is no such lane.
  void close_lane(const Guest& guest, uint32_t lane_id);
  // Unregister: what is being sent from or received into the region stops; its pins go, at once or (device copies in
  // flight) when the copy has landed.
  void fence_region(const RegionState& region);

  uint64_t bytes_served() const { return bytes_served_; }

 private:
  // Replies waiting in one lane before its input is paused; each holds at most kMaxSpans iovecs.
  static constexpr size_t kMaxQueuedReplies = 16;

  struct Spans {
    Status status;  // why the request is refused
    std::vector<RemoteSpan> list;
    std::vector<RegionPin> pins;     // one a run of spans in the same region
    std::vector<std::byte*> places;  // by span
    uint64_t bytes = 0;
  };
  struct Served {
    Guest* guest = nullptr;
    std::unique_ptr<Lane> lane;
    Spans writing;            // of the write whose payload is arriving
    Staging::Buffer staging;  // where it arrives, for memory that the CPU cannot touch
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
  ServedPtr find(const Lane& lane) const;
  // A copy, so that lanes may be retired while it is walked.
  std::vector<ServedPtr> all() const;
  void retire(const ServedPtr& served, bool reset);

  Loop& loop_;
  Registry& registry_;
  Staging& staging_;
  std::unordered_map<const Lane*, ServedPtr> served_;
  uint64_t bytes_served_ = 0;
};

}  // namespace kvferry::tcp
