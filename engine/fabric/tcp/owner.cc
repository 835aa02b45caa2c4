#include "engine/fabric/tcp/owner.h"

#include <algorithm>

namespace kvferry::tcp {
namespace {

std::string head_of(FrameType type, uint64_t op, const Status& status, uint64_t payload) {
  Header header;
  header.type = type;
  header.op = op;
  const std::string text = status.ok() ? std::string() : status.error().to_string();
  header.code = status.ok() ? uint16_t{0} : static_cast<uint16_t>(status.error().code);
  header.table_bytes = static_cast<uint32_t>(text.size());
  header.payload_bytes = payload;
  std::string head;
  encode_header(header, head);
  return head + text;
}

std::vector<iovec> iovecs_of(const std::vector<std::byte*>& places, const std::vector<RemoteSpan>& spans) {
  std::vector<iovec> out;
  out.reserve(spans.size());
  for (size_t i = 0; i < spans.size(); ++i) out.push_back({places[i], spans[i].length});
  return out;
}

std::vector<CopySpan> staged_spans(const std::vector<std::byte*>& places, const std::vector<RemoteSpan>& spans,
                                   std::byte* staging) {
  std::vector<CopySpan> out;
  out.reserve(spans.size());
  for (size_t i = 0; i < spans.size(); ++i) {
    out.push_back({places[i], staging, spans[i].length});
    staging += spans[i].length;
  }
  return out;
}

}  // namespace

Owner::~Owner() {
  for (const auto& [lane, served] : served_) served->lane->close(true);
}

void Owner::adopt(Guest& guest, std::unique_ptr<Stream> stream, uint32_t lane_id) {
  auto served = std::make_shared<Served>();
  served->number = next_number_++;
  served->guest = &guest;
  served->sent_since = loop_.now();
  served->lane =
      std::make_unique<Lane>(loop_, std::move(stream), static_cast<LaneHandler&>(*this), lane_id, std::string());
  const Lane* key = served->lane.get();
  served_.emplace(key, std::move(served));
}

Owner::ServedPtr Owner::find(const Lane& lane) const {
  const auto found = served_.find(&lane);
  KVF_CHECK(found != served_.end());
  return found->second;
}

std::vector<Owner::ServedPtr> Owner::all() const {
  std::vector<ServedPtr> out;
  for (const auto& [lane, served] : served_) out.push_back(served);
  std::sort(out.begin(), out.end(), [](const ServedPtr& a, const ServedPtr& b) { return a->number < b->number; });
  return out;
}

// The lane may be the caller's caller: it is closed now and destroyed later.
void Owner::retire(const ServedPtr& served, bool reset) {
  served->lane->close(reset);
  served->guest = nullptr;
  served->writing = Spans{};
  served->staging.release();
  served->streams.clear();
  auto entry = served_.extract(served->lane.get());
  if (!entry.empty()) loop_.defer([keep = std::move(entry.mapped())] {});
}

void Owner::drop_guest(const Guest& guest) {
  for (const ServedPtr& served : all())
    if (served->guest == &guest) retire(served, true);
  staging_.drain();  // I5: nothing of this session lands behind what the next one writes
}

size_t Owner::lanes_of(const Guest& guest) const {
  return static_cast<size_t>(
      std::count_if(served_.begin(), served_.end(), [&](const auto& entry) { return entry.second->guest == &guest; }));
}

Duration Owner::held_up_by(const Guest& guest) {
  Duration longest{0};
  const TimePoint now = loop_.now();
  for (const auto& [lane, served] : served_) {
    if (served->guest != &guest) continue;
    const uint64_t sent = lane->bytes_sent();
    if (lane->queued_frames() == 0 || sent != std::exchange(served->sent_before, sent)) served->sent_since = now;
    longest = std::max(longest, now - served->sent_since);
  }
  return longest;
}

void Owner::close_lane(const Guest& guest, uint32_t lane_id) {
  for (const ServedPtr& served : all())
    if (served->guest == &guest && served->lane->id() == lane_id) retire(served, true);
  staging_.drain();  // of what it wrote to a device
}

void Owner::fence_region(const RegionState& region) {
  const auto uses = [&](const RegionPin& pin) { return pin.get() == &region; };
  for (const ServedPtr& served : all()) {
    if (served->lane->sends_from(region)) {
      retire(served, true);  // a frame cannot be cut short; the initiator asks again and is told
    } else if (std::any_of(served->writing.pins.begin(), served->writing.pins.end(), uses)) {
      served->lane->discard_incoming();
      served->writing.status =
          Error{ErrorCode::not_found, "region " + std::to_string(region.info.id) + " was unregistered"};
      served->writing.pins.clear();
      served->staging.release();
    }
  }
}

bool Owner::may_scatter(Lane& lane) {
  // The poll comes before the session's frames, both before any byte lands (I4): queued bytes outlive a reset.
  if (lane.stream().torn()) return false;
  const ServedPtr served = find(lane);
  return served->guest->still_welcome() && !lane.closed();
}

Result<Owner::Spans> Owner::resolve(ByteSpan table, uint32_t permission) {
  Spans spans;
  KVF_ASSIGN_OR_RETURN(spans.list, decode_spans(table));
  spans.places.reserve(spans.list.size());
  for (const RemoteSpan& span : spans.list) {
    spans.bytes += span.length;
    if (!spans.status.ok()) continue;
    if (spans.pins.empty() || spans.pins.back()->info.id != span.region) {
      auto pin = registry_.pin_remote(span.region, permission);
      if (!pin) {
        spans.status = std::move(pin).error();
        continue;
      }
      spans.pins.push_back(std::move(*pin));
    }
    const RegionState& region = *spans.pins.back().get();
    spans.status = check_span(region.info, span.offset, span.length);
    if (spans.pins.front()->ops != region.ops)
      spans.status = Error{ErrorCode::unsupported, "spans of one frame are of several memory kinds"};
    spans.places.push_back(region.at(span.offset));
  }
  if (spans.list.empty()) return Error{ErrorCode::protocol, "malformed lane frame: no spans"};
  if (spans.bytes > kMaxPayload)
    return Error{ErrorCode::protocol, "malformed lane frame: more bytes than a frame may carry"};
  if (!spans.status.ok()) spans.pins.clear();
  return spans;
}

Result<std::vector<iovec>> Owner::on_frame(Lane& lane, const Header& header, ByteSpan table) {
  const ServedPtr served = find(lane);
  if (header.type == FrameType::read) {
    if (header.payload_bytes != 0) return Error{ErrorCode::protocol, "malformed lane frame: read with a payload"};
    KVF_ASSIGN_OR_RETURN(Spans spans, resolve(table, kRemoteRead));
    serve_read(served, header, std::move(spans));
    pace(*served);
    return std::vector<iovec>{};
  }
  if (header.type == FrameType::write) {
    KVF_ASSIGN_OR_RETURN(Spans spans, resolve(table, kRemoteWrite));
    return accept_write(*served, header, std::move(spans));
  }
  if (header.type == FrameType::fetch) return accept_fetch(served, header, table);
  return Error{ErrorCode::protocol, "malformed lane frame: a reply where a request belongs"};
}

void Owner::on_drained(Lane& lane) {
  const ServedPtr served = find(lane);
  pace(*served);
  pump(served);
}

// Requests are taken from a lane only as fast as their answers leave it.
void Owner::pace(Served& served) {
  Lane& lane = *served.lane;
  const size_t waiting = lane.queued_frames() + served.being_copied;
  if (waiting >= kMaxQueuedReplies)
    lane.pause_input(true);
  else if (lane.queued_frames() == 0)
    lane.pause_input(false);
}

void Owner::serve_read(const ServedPtr& served, const Header& header, Spans spans) {
  if (!spans.status.ok()) return reply(*served, FrameType::read_reply, header.op, spans.status);
  bytes_served_ += spans.bytes;
  if (!spans.pins.front()->ops->host_addressable()) return serve_staged_read(served, header.op, std::move(spans));
  OutFrame frame;
  frame.op = header.op;
  frame.head = head_of(FrameType::read_reply, header.op, {}, spans.bytes);
  frame.payload = iovecs_of(spans.places, spans.list);
  frame.pins = std::move(spans.pins);
  served->lane->send(std::move(frame));
}

void Owner::serve_staged_read(const ServedPtr& served, uint64_t op, Spans moved) {
  auto spans = std::make_shared<Spans>(std::move(moved));
  MemoryOps& ops = *spans->pins.front()->ops;
  const std::weak_ptr<Served> weak = served;
  ++served->being_copied;
  staging_.acquire(ops, spans->bytes, [this, weak, op, spans, &ops](Result<Staging::Buffer> acquired) {
    const ServedPtr alive = weak.lock();
    if (alive == nullptr || alive->guest == nullptr) return;
    if (!acquired) {
      --alive->being_copied;
      return reply(*alive, FrameType::read_reply, op, std::move(acquired).error());
    }
    auto buffer = std::make_shared<Staging::Buffer>(std::move(*acquired));
    const auto copies = staged_spans(spans->places, spans->list, buffer->data());
    staging_.copy(ops, CopyDirection::to_host, copies, [this, weak, op, spans, buffer](Status status) {
      spans->pins.clear();
      const ServedPtr still = weak.lock();
      if (still == nullptr || still->guest == nullptr) return;
      --still->being_copied;
      if (!status.ok()) return reply(*still, FrameType::read_reply, op, status);
      OutFrame frame;
      frame.op = op;
      frame.head = head_of(FrameType::read_reply, op, {}, spans->bytes);
      frame.payload = {{buffer->data(), buffer->size()}};
      frame.staging = std::move(*buffer);
      still->lane->send(std::move(frame));
    });
  });
}

Result<std::vector<iovec>> Owner::accept_write(Served& served, const Header& header, Spans spans) {
  if (header.payload_bytes != spans.bytes)
    return Error{ErrorCode::protocol, "malformed lane frame: the payload's length is not that of its spans"};
  served.writing = std::move(spans);
  if (!served.writing.status.ok()) return std::vector<iovec>{};
  bytes_served_ += served.writing.bytes;
  MemoryOps& ops = *served.writing.pins.front()->ops;
  if (ops.host_addressable()) return iovecs_of(served.writing.places, served.writing.list);
  auto buffer = staging_.take_now(ops, served.writing.bytes);
  if (!buffer) {
    served.writing.status = std::move(buffer).error();
    return std::vector<iovec>{};
  }
  served.staging = std::move(*buffer);
  return std::vector<iovec>{{served.staging.data(), served.staging.size()}};
}

void Owner::on_frame_end(Lane& lane, const Header& header) {
  if (header.type != FrameType::write) return;
  const ServedPtr served = find(lane);
  if (served->staging && served->writing.status.ok()) return finish_staged_write(served, header.op);
  served->writing.pins.clear();
  reply(*served, FrameType::write_reply, header.op, served->writing.status);
}

void Owner::finish_staged_write(const ServedPtr& served, uint64_t op) {
  auto spans = std::make_shared<Spans>(std::move(served->writing));
  served->writing = Spans{};
  auto buffer = std::make_shared<Staging::Buffer>(std::move(served->staging));
  const auto copies = staged_spans(spans->places, spans->list, buffer->data());
  const std::weak_ptr<Served> weak = served;
  ++served->being_copied;
  staging_.copy(*spans->pins.front()->ops, CopyDirection::to_device, copies,
                [this, weak, op, spans, buffer](const Status& status) {
                  spans->pins.clear();
                  buffer->release();
                  const ServedPtr still = weak.lock();
                  if (still == nullptr || still->guest == nullptr) return;
                  --still->being_copied;
                  reply(*still, FrameType::write_reply, op, status);
                });
  pace(*served);
}

void Owner::reply(Served& served, FrameType type, uint64_t op, const Status& status) {
  OutFrame frame;
  frame.op = op;
  frame.head = head_of(type, op, status, 0);
  served.lane->send(std::move(frame));
  pace(served);
}

void Owner::on_lost(Lane& lane, Error) {
  retire(find(lane), true);
}

}  // namespace kvferry::tcp
