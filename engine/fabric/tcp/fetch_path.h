#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/fabric/tcp/path.h"

namespace kvferry::tcp {

// Where a stream lands, made by the layer that knows what is fetched. On loop only.
class FetchSink {
 public:
  virtual ~FetchSink() = default;
  virtual void on_head(ByteSpan head) = 0;
  // Where the next `bytes` go: host memory that stays until on_filled() or the fetch's end. An Error, when more comes
  // than was asked for, ends the lane.
  virtual Result<std::vector<iovec>> place(uint64_t bytes) = 0;
  // They are there. False: no more before FetchPath::go_on().
  virtual bool on_filled() = 0;
  // The trailer, after the last byte has been scattered; or why there is none. Once, unless cancelled.
  virtual void on_end(Result<std::string> trailer) = 0;
};

// The reader's side of fetches: requests out, streams in, each scattered straight to where its sink says. Has lanes
// of its own, so that streams and single transfers do not wait for each other. On loop only.
class FetchPath final : private LaneHandler {
 public:
  using FetchId = uint64_t;

  FetchPath(Loop& loop, LaneSource& source, size_t lanes) : loop_(loop), source_(source), lanes_(lanes) {}
  ~FetchPath() override;

  FetchId start(std::string request, std::shared_ptr<FetchSink> sink);
  // After on_filled() said false.
  void go_on(FetchId id);
  // I4: when this returns, nothing more is scattered for it.
  void cancel(FetchId id);
  // The session is over: every fetch ends with `why`.
  void fail_all(const Error& why);

 private:
  struct Running {
    std::string request;
    std::shared_ptr<FetchSink> sink;
    bool has_head = false;
    bool holds_lane = false;  // its sink takes no more now
    bool cancelled = false;
    bool asked = false;
  };
  struct LaneState {
    std::unique_ptr<Lane> lane;
    std::unordered_map<FetchId, Running> running;
    std::deque<FetchId> unsent;  // wait for the lane, or for others to end
    size_t asked = 0;            // of those that run
    bool waiting = false;        // the source will call again
  };

  Result<std::vector<iovec>> on_frame(Lane& lane, const Header& header, ByteSpan table) override;
  bool may_scatter(Lane&) override { return true; }
  void on_frame_end(Lane& lane, const Header& header) override;
  void on_drained(Lane&) override {}
  void on_lost(Lane& lane, Error error) override;

  bool ensure_lane(LaneState& state);
  void send_unsent(LaneState& state);
  void finish(LaneState& state, FetchId id, Result<std::string> trailer);
  void fail_lane(LaneState& state, const Error& why);
  LaneState& state_of(const Lane& lane);

  Loop& loop_;
  LaneSource& source_;
  std::vector<LaneState> lanes_;
  FetchId next_id_ = 1;
  std::string trailer_;  // of the frame that is being read
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvferry::tcp
