#pragma once

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/fabric/tcp/path.h"

namespace kvferry::tcp {

// The reader's side of fetches: requests out, streams in, each scattered straight to where its caller says. Has lanes
// of its own, so that streams and single transfers do not wait for each other. On loop only.
class FetchPath final : private LaneHandler {
 public:
  using FetchId = uint64_t;
  struct Fetch {
    std::string request;
    std::vector<iovec> target;  // of the whole stream; stays valid until `ended` or cancel()
    std::function<void(ByteSpan head)> head;
    // The trailer, after the last byte has been scattered; or why there is none. Once, unless cancelled.
    std::function<void(Result<std::string> trailer)> ended;
  };

  FetchPath(Loop& loop, LaneSource& source, size_t lanes) : loop_(loop), source_(source), lanes_(lanes) {}
  ~FetchPath() override;

  FetchId start(Fetch fetch);
  // I4: when this returns, nothing more is scattered for it.
  void cancel(FetchId id);
  // The session is over: every fetch ends with `why`.
  void fail_all(const Error& why);

 private:
  struct Running {
    Fetch fetch;
    size_t index = 0;  // into fetch.target
    bool has_head = false;
    bool cancelled = false;
  };
  struct LaneState {
    std::unique_ptr<Lane> lane;
    std::unordered_map<FetchId, Running> running;
    std::vector<FetchId> unsent;  // wait for the lane
    bool waiting = false;         // the source will call again
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
