#include "engine/fabric/tcp/fetch_path.h"

#include <algorithm>

namespace kvferry::tcp {
namespace {

constexpr size_t kMostAsked = 512;  // at once in one lane: owners take 1,024

}  // namespace

FetchPath::~FetchPath() {
  *alive_ = false;
  for (LaneState& state : lanes_)
    if (state.lane) state.lane->close(true);
}

FetchPath::FetchId FetchPath::start(std::string request, std::shared_ptr<FetchSink> sink) {
  const FetchId id = next_id_++;
  LaneState& state = *std::min_element(lanes_.begin(), lanes_.end(), [](const LaneState& a, const LaneState& b) {
    return a.running.size() < b.running.size();
  });
  state.running.emplace(id, Running{std::move(request), std::move(sink)});
  state.unsent.push_back(id);
  if (ensure_lane(state)) send_unsent(state);
  return id;
}

bool FetchPath::ensure_lane(LaneState& state) {
  if (state.lane) return true;
  if (state.waiting) return false;
  LaneState* slot = &state;
  auto opened = source_.open_lane([this, alive = alive_, slot] {
    if (!*alive) return;
    slot->waiting = false;
    if (ensure_lane(*slot)) send_unsent(*slot);
  });
  if (!opened) {
    // Not from within start(): its caller has not got the id yet.
    loop_.defer([this, alive = alive_, slot, why = opened.error()] {
      if (*alive) fail_lane(*slot, why);
    });
    return false;
  }
  if (!opened->has_value()) {
    state.waiting = true;
    return false;
  }
  LaneSource::NewLane& fresh = **opened;
  state.lane = std::make_unique<Lane>(loop_, std::move(fresh.stream), static_cast<LaneHandler&>(*this), fresh.id,
                                      std::move(fresh.preface));
  return true;
}

void FetchPath::send_unsent(LaneState& state) {
  while (state.lane && !state.lane->closed() && !state.unsent.empty() && state.asked < kMostAsked) {
    const FetchId id = state.unsent.front();
    state.unsent.pop_front();
    const auto found = state.running.find(id);
    if (found == state.running.end()) continue;
    found->second.asked = true;
    ++state.asked;
    const std::string& request = found->second.request;
    Header header;
    header.type = FrameType::fetch;
    header.op = id;
    header.table_bytes = static_cast<uint32_t>(request.size());
    OutFrame frame;
    frame.op = id;
    encode_header(header, frame.head);
    frame.head += request;
    state.lane->send(std::move(frame));
  }
}

FetchPath::LaneState& FetchPath::state_of(const Lane& lane) {
  const auto found =
      std::find_if(lanes_.begin(), lanes_.end(), [&](const LaneState& state) { return state.lane.get() == &lane; });
  KVF_CHECK(found != lanes_.end());
  return *found;
}

Result<std::vector<iovec>> FetchPath::on_frame(Lane& lane, const Header& header, ByteSpan table) {
  LaneState& state = state_of(lane);
  const auto found = state.running.find(header.op);
  if (found == state.running.end() || !found->second.asked)
    return Error{ErrorCode::protocol, "malformed lane frame: answer to nothing"};
  Running& running = found->second;
  const bool is_head = header.type == FrameType::fetch_head;
  const bool is_data = header.type == FrameType::fetch_data;
  if ((!is_head && !is_data && header.type != FrameType::fetch_end) || is_head == running.has_head ||
      is_data != (header.payload_bytes > 0))
    return Error{ErrorCode::protocol, "malformed lane frame: out of its order in a stream"};
  if (!is_data) {
    running.has_head = true;
    trailer_.assign(reinterpret_cast<const char*>(table.data()), table.size());
    if (is_head && header.code == 0 && !running.cancelled) running.sink->on_head(table);
    return std::vector<iovec>{};
  }
  if (running.cancelled) return std::vector<iovec>{};
  return running.sink->place(header.payload_bytes);
}

void FetchPath::on_frame_end(Lane& lane, const Header& header) {
  LaneState& state = state_of(lane);
  if (header.type == FrameType::fetch_data) {
    const auto found = state.running.find(header.op);
    if (found == state.running.end() || found->second.cancelled) return;
    const std::shared_ptr<FetchSink> sink = found->second.sink;
    if (sink->on_filled()) return;
    found->second.holds_lane = true;
    return lane.pause_input(true);
  }
  if (header.type == FrameType::fetch_head && header.code == 0) return;
  if (header.code != 0) return finish(state, header.op, Error{static_cast<ErrorCode>(header.code), trailer_});
  finish(state, header.op, std::exchange(trailer_, {}));
}

void FetchPath::finish(LaneState& state, FetchId id, Result<std::string> trailer) {
  auto entry = state.running.extract(id);
  if (entry.empty()) return;
  --state.asked;
  send_unsent(state);  // before anybody is told, who may end the session
  if (!entry.mapped().cancelled) entry.mapped().sink->on_end(std::move(trailer));
}

void FetchPath::go_on(FetchId id) {
  for (LaneState& state : lanes_) {
    const auto found = state.running.find(id);
    if (found == state.running.end()) continue;
    if (std::exchange(found->second.holds_lane, false) && state.lane) state.lane->pause_input(false);
    return;
  }
}

void FetchPath::cancel(FetchId id) {
  for (LaneState& state : lanes_) {
    const auto found = state.running.find(id);
    if (found == state.running.end()) continue;
    if (std::erase(state.unsent, id) > 0) {
      state.running.erase(found);
    } else {
      found->second.cancelled = true;  // its stream is thrown away as it comes
      go_on(id);
      if (state.lane && state.lane->receiving(id)) state.lane->discard_incoming();
    }
    return;
  }
}

void FetchPath::fail_lane(LaneState& state, const Error& why) {
  if (state.lane) {
    state.lane->close(true);
    std::shared_ptr<Lane> keep = std::move(state.lane);
    loop_.defer([keep] {});
  }
  state.unsent.clear();
  state.asked = 0;
  for (auto& [id, running] : std::exchange(state.running, {}))
    if (!running.cancelled) running.sink->on_end(why);
}

void FetchPath::on_lost(Lane& lane, Error error) {
  fail_lane(state_of(lane), error);
}

void FetchPath::fail_all(const Error& why) {
  for (LaneState& state : lanes_) fail_lane(state, why);
}

}  // namespace kvferry::tcp
