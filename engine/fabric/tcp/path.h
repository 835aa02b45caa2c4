#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "engine/fabric/fabric.h"
#include "engine/fabric/tcp/lane.h"

namespace kvferry::tcp {

struct PathOptions {
  size_t bulk_lanes = 2;                       // besides the one for small transfers
  uint64_t chunk_bytes = uint64_t{1} << 20;    // of a large transfer; at most kMaxPayload
  uint64_t lane_window = uint64_t{4} << 20;    // bytes outstanding in one lane
  uint64_t small_bytes = uint64_t{128} << 10;  // transfers up to this take the small lane
  int attempts = 3;                            // lanes that may break under one chunk
};

// How a path gets lanes that belong to its session.
class LaneSource {
 public:
  virtual ~LaneSource() = default;
  struct NewLane {
    std::unique_ptr<Stream> stream;
    uint32_t id;
    std::string preface;
  };
  // An Error when the peer cannot be dialled now; nothing when `again` will be called once lanes can be had.
  virtual Result<std::optional<NewLane>> open_lane(Task again) = 0;
  // Asks the peer to stop applying what came by that lane; `fenced` when it says so.
  virtual void fence_lane(uint32_t id, Task fenced) = 0;
};

// The initiator's side of the tcp fabric: cuts jobs into chunks, deals them to lanes, and takes them back when a lane
// breaks or a job is cancelled. On loop only.
class TcpPath final : public Path, private LaneHandler {
 public:
  TcpPath(Loop& loop, LaneSource& source, Staging& staging, PathOptions options);
  ~TcpPath() override;

  const char* fabric() const override { return "tcp"; }
  void start(std::shared_ptr<Job> job) override;
  bool cancel(const std::shared_ptr<Job>& job, Task far_quiet) override;
  std::string describe() const override;

 private:
  // One job under way.
  struct Work {
    std::shared_ptr<Job> job;
    uint64_t number;  // in the order of start()
    Chunker chunker;
    size_t outstanding = 0;  // chunks cut and not answered
    size_t unfenced = 0;     // of a write: lanes reset under it that the peer may still apply
    bool ended = false;      // done or cancelled: what still arrives for it goes to waste
    Status failure;
    Task far_quiet;        // of a cancelled write: called when `unfenced` falls to zero
    bool dropped = false;  // about to end: none of its chunks is on its way any more
  };
  using WorkPtr = std::shared_ptr<Work>;
  struct ChunkOp {
    WorkPtr work;
    Chunk chunk;
    int attempts = 0;
    Staging::Buffer staging;      // for memory that the CPU cannot touch
    std::shared_ptr<void> share;  // of `staged_bytes_`, until it is given to a lane
  };
  struct LaneState {
    std::unique_ptr<Lane> lane;
    std::unordered_map<uint64_t, ChunkOp> ops;
    uint64_t outstanding_bytes = 0;
    bool waiting = false;  // the source will call again
  };

  Result<std::vector<iovec>> on_frame(Lane& lane, const Header& header, ByteSpan table) override;
  bool may_scatter(Lane&) override { return true; }
  void on_frame_end(Lane& lane, const Header& header) override;
  void on_drained(Lane&) override {}
  void on_lost(Lane& lane, Error error) override;

  void pump();
  void pump_later();
  bool pump_bulk();
  bool may_begin(const Work& work) const;
  LaneState* roomiest_bulk_lane();
  bool ensure_lane(LaneState& state);
  void send_chunk(LaneState& state, ChunkOp op);
  void send_from_host(LaneState& state, ChunkOp op);
  void stage_and_send(LaneState& state, ChunkOp op);
  void finish_read(ChunkOp op);
  void finish_chunk(ChunkOp op, Status status);
  void end_work(const WorkPtr& work, Status status);
  void end_if_complete(const WorkPtr& work);
  void on_fenced(const WorkPtr& work);
  void drop_chunks(const WorkPtr& work);
  std::vector<ChunkOp> reset_lane(LaneState& state);
  void send_again(std::vector<ChunkOp> ops, const Error& error);
  void fail_all(const Error& error);
  LaneState& state_of(const Lane& lane);
  bool is_small(const Job& job) const { return job.bytes <= options_.small_bytes && job.pairs.size() <= kMaxSpans; }

  Loop& loop_;
  LaneSource& source_;
  Staging& staging_;
  const PathOptions options_;
  std::vector<LaneState> lanes_;  // [0]: small transfers
  std::deque<WorkPtr> bulk_;      // jobs with chunks to cut, in turn
  std::deque<ChunkOp> small_;     // small jobs that wait for their lane
  std::deque<ChunkOp> again_;     // chunks whose lane broke
  std::unordered_map<const Job*, WorkPtr> works_;
  // Of writes that wait for staging memory, or have some and wait for their first lane: about a lane's window, so that
  // a slow peer does not stand before all others there (I7). With what its lanes carry it has some 12 MiB.
  const std::shared_ptr<uint64_t> staged_bytes_ = std::make_shared<uint64_t>(0);
  uint64_t next_op_ = 1;
  uint64_t next_work_ = 1;
  bool failing_ = false;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // callbacks outlive the path
};

}  // namespace kvferry::tcp
