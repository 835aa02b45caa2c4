#include "engine/session/frames.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "proto/control.pb.h"
#include "proto/parse.h"

namespace kvferry {
namespace {

constexpr size_t kReadBytes = size_t{16} << 10;
constexpr size_t kKept = size_t{64} << 10;  // of a buffer that is not in use

void give_back(std::string& buffer) {
  if (buffer.capacity() > kKept && buffer.size() < kReadBytes) buffer.shrink_to_fit();
}

}  // namespace

Frames::Frames(std::unique_ptr<Stream> stream, FramesHandler& handler, Limits limits, std::string preface)
    : stream_(std::move(stream)), handler_(handler), limits_(limits), out_(std::move(preface)) {
  stream_->set_handler(this);
  stream_->want(true, !out_.empty());
  if (limits_.room != nullptr) limits_.room->members.insert(this);
}

Frames::~Frames() {
  stream_->set_handler(nullptr);
  leave_room();
}

// Of one that is closed nothing is held for longer than this turn of the loop.
void Frames::leave_room() {
  if (limits_.room == nullptr || limits_.room->members.erase(this) == 0) return;
  limits_.room->held -= std::exchange(accounted_, 0);
}

void Frames::close(bool flush_first) {
  if (closed_) return;
  if (flush_first) {
    const iovec rest{out_.data() + out_sent_, out_.size() - out_sent_};
    if (rest.iov_len > 0) [[maybe_unused]]
      const auto ignored = stream_->write({&rest, 1});
  }
  closed_ = true;
  stream_->set_handler(nullptr);
  stream_->want(false, false);
  leave_room();
}

void Frames::fail(Error error) {
  if (closed_) return;
  close(false);
  handler_.on_frames_lost(std::move(error));
}

bool Frames::keep_within_room() {
  give_back(in_);
  give_back(out_);
  if (limits_.room == nullptr || closed_) return !closed_;
  FrameRoom& room = *limits_.room;
  const size_t now = in_.capacity() + out_.capacity();
  room.held = room.held - accounted_ + now;
  accounted_ = now;
  while (room.held > room.limit) {
    const auto most = std::max_element(room.members.begin(), room.members.end(),
                                       [](const Frames* a, const Frames* b) { return a->accounted_ < b->accounted_; });
    Frames& greedy = **most;
    if (greedy.accounted_ <= room.share) break;
    greedy.fail(Error{ErrorCode::resource_exhausted, "max_session_bytes (" + std::to_string(room.limit) +
                                                         ") of all sessions are used up, " +
                                                         std::to_string(greedy.accounted_) + " by this one"});
  }
  return !closed_;
}

void Frames::send(const proto::Frame& frame) {
  const bool idle = out_sent_ == out_.size() || held_;
  if (queue(frame) && idle) flush();
}

void Frames::hold(const proto::Frame& frame) {
  const bool idle = out_sent_ == out_.size();
  if (queue(frame) && idle) held_ = true;
}

void Frames::flush_held() {
  if (held_ && !closed_) flush();
}

bool Frames::queue(const proto::Frame& frame) {
  if (closed_) return false;
  const size_t size = frame.ByteSizeLong();
  KVF_CHECK(size <= limits_.frame_bytes);
  if (out_.size() - out_sent_ + size > limits_.queued_bytes) {
    fail(Error{ErrorCode::resource_exhausted, "the peer does not read its session"});
    return false;
  }
  const auto length = static_cast<uint32_t>(size);
  const size_t at = out_.size();
  out_.resize(at + sizeof length + size);
  std::memcpy(out_.data() + at, &length, sizeof length);
  frame.SerializeWithCachedSizesToArray(reinterpret_cast<uint8_t*>(out_.data() + at + sizeof length));
  return keep_within_room();
}

void Frames::flush() {
  held_ = false;
  while (out_sent_ < out_.size()) {
    const iovec rest{out_.data() + out_sent_, out_.size() - out_sent_};
    auto count = stream_->write({&rest, 1});
    if (!count) return fail(std::move(count).error());
    if (*count == 0) break;
    out_sent_ += *count;
  }
  if (out_sent_ == out_.size()) {
    out_.clear();
    out_sent_ = 0;
  } else if (out_sent_ > out_.size() / 2) {
    out_.erase(0, out_sent_);
    out_sent_ = 0;
  }
  stream_->want(true, !out_.empty());
}

void Frames::on_stream_ready(bool readable, bool writable) {
  if (writable && !out_.empty()) {
    flush();
    if (!closed_ && out_.empty()) handler_.on_frames_drained();
  }
  if (readable && !closed_) read_input();
}

void Frames::read_input() {
  if (closed_) return;
  char buffer[kReadBytes];  // a string would write zeros there first
  const iovec room{buffer, sizeof buffer};
  auto count = stream_->read({&room, 1});
  if (!count) return fail(std::move(count).error());
  in_.append(buffer, *count);
  parse();
  if (!closed_) keep_within_room();
}

void Frames::parse() {
  size_t at = 0;
  while (!closed_ && in_.size() - at >= sizeof(uint32_t)) {
    uint32_t length = 0;
    std::memcpy(&length, in_.data() + at, sizeof length);
    if (length > limits_.frame_bytes)
      return fail(
          Error{ErrorCode::protocol, "session frame of " + std::to_string(length) + " bytes is over the limit"});
    if (in_.size() - at - sizeof length < length) break;
    proto::Frame frame;
    if (!proto::parse(frame, std::string_view(in_).substr(at + sizeof length, length)))
      return fail(Error{ErrorCode::protocol, "session frame cannot be parsed"});
    at += sizeof length + length;
    handler_.on_frame(frame);
  }
  in_.erase(0, at);
}

}  // namespace kvferry
