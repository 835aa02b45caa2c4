#include <algorithm>

#include "engine/fabric/tcp/owner.h"

// Streams that answer fetches: pieces of them are queued as the lane drains, several streams of a lane in turn.

namespace kvferry::tcp {
namespace {

constexpr size_t kQueuedPieces = 2;   // of one lane: one being sent, one ready
constexpr size_t kTurnPieces = 4;     // into a lane that takes them all, before the others get their turn (I7)
constexpr size_t kMaxStreams = 1024;  // of one lane, with the fetches that wait for their answer (I6)

OutFrame frame_of(FrameType type, uint64_t op, uint16_t code, const std::string& table, std::vector<iovec> payload) {
  Header header;
  header.type = type;
  header.op = op;
  header.code = code;
  header.table_bytes = static_cast<uint32_t>(table.size());
  for (const iovec& part : payload) header.payload_bytes += part.iov_len;
  OutFrame frame;
  frame.op = op;
  encode_header(header, frame.head);
  frame.head += table;
  frame.payload = std::move(payload);
  return frame;
}

}  // namespace

Result<std::vector<iovec>> Owner::accept_fetch(const ServedPtr& served, const Header& header, ByteSpan table) {
  if (header.payload_bytes != 0) return Error{ErrorCode::protocol, "malformed lane frame: fetch with a payload"};
  const uint64_t op = header.op;
  const auto refuse = [this, op](Served& asker, const Error& why) {
    asker.lane->send(frame_of(FrameType::fetch_head, op, static_cast<uint16_t>(why.code), why.to_string(), {}));
    pace(asker);
  };
  if (served->streams.size() + served->fetches_asked >= kMaxStreams) {
    refuse(*served, Error{ErrorCode::resource_exhausted, "too many fetches at once in one lane"});
    return std::vector<iovec>{};
  }
  if (desk_ == nullptr) {
    refuse(*served, Error{ErrorCode::unsupported, "this engine has no parcels"});
    return std::vector<iovec>{};
  }
  ++served->fetches_asked;
  const std::weak_ptr<Served> weak = served;
  desk_->on_fetch(*served->guest, table, [this, weak, op, refuse](Result<std::shared_ptr<FetchSource>> source) {
    const ServedPtr asker = weak.lock();
    if (asker == nullptr || asker->guest == nullptr) return;
    --asker->fetches_asked;
    if (!source) return refuse(*asker, source.error());
    asker->streams.push_back(Streaming{op, std::move(*source)});
    pump(asker);
  });
  return std::vector<iovec>{};
}

// Fills the lane's queue with the next pieces of its streams, each in turn.
void Owner::pump(const ServedPtr& served) {
  if (served->pumping) return;
  served->pumping = true;
  std::list<Streaming>& streams = served->streams;
  for (size_t pieces = 0; !streams.empty() && !served->lane->closed(); ++pieces) {
    if (served->lane->queued_frames() >= kQueuedPieces) break;  // on_drained() comes back here
    if (pieces == kTurnPieces) {
      loop_.defer([this, weak = std::weak_ptr<Served>(served)] {
        if (const ServedPtr later = weak.lock(); later && later->guest != nullptr) pump(later);
      });
      break;
    }
    const auto ready =
        std::find_if(streams.begin(), streams.end(), [](const Streaming& one) { return one.source->ready(); });
    if (ready == streams.end()) break;  // resume() comes back here
    Streaming next = std::move(*ready);
    streams.erase(ready);  // sending may lose the lane, and its streams with it
    if (send_next(*served, next)) streams.push_back(std::move(next));
  }
  served->pumping = false;
}

// Queues a piece; false: the trailer is queued too, and the stream is all handed over. A small stream leaves in one go.
bool Owner::send_next(Served& served, Streaming& streaming) {
  Lane& lane = *served.lane;
  std::vector<OutFrame> frames;
  if (!std::exchange(streaming.head_sent, true))
    frames.push_back(frame_of(FrameType::fetch_head, streaming.op, 0, streaming.source->head(), {}));
  FetchSource::Piece piece = streaming.source->next(kPieceBytes);
  if (!piece.bytes.empty()) {
    frames.push_back(frame_of(FrameType::fetch_data, streaming.op, 0, {}, std::move(piece.bytes)));
    frames.back().staging = std::move(piece.staging);
  }
  const bool ends = streaming.source->at_end();
  if (ends) {
    frames.push_back(frame_of(FrameType::fetch_end, streaming.op, 0, streaming.source->trailer(), {}));
    frames.back().last = true;
  }
  for (OutFrame& frame : frames) {
    frame.tag = streaming.source;
    for (const iovec& part : frame.payload) bytes_served_ += part.iov_len;
  }
  lane.send(std::move(frames));
  return !ends;
}

void Owner::resume(const FetchSource& source) {
  for (const auto& [lane, served] : served_) {
    const bool here = std::any_of(served->streams.begin(), served->streams.end(),
                                  [&](const Streaming& one) { return one.source.get() == &source; });
    if (!here) continue;
    const ServedPtr found = served;
    return pump(found);
  }
}

void Owner::stop(FetchSource& source) {
  const auto last_head = [&](uint64_t op) { return frame_of(FrameType::fetch_end, op, 0, source.trailer(), {}).head; };
  for (const ServedPtr& served : all()) served->lane->poison(&source, last_head);
}

}  // namespace kvferry::tcp
