#include "engine/fabric/tcp/lane.h"

#include <algorithm>
#include <climits>
#include <cstring>

namespace kvferry::tcp {
namespace {

constexpr size_t kBufferBytes = size_t{16} << 10;
// What one lane moves in one turn of the loop each way, before the others get theirs (I7).
constexpr size_t kTurnBytes = size_t{2} << 20;
// A short read of a payload that brings this much says that more is on its way: asking again costs less than sleeping.
constexpr size_t kFlowing = size_t{32} << 10;
constexpr uint64_t kPrefaceOp = UINT64_MAX;

}  // namespace

MutableByteSpan waste() {
  // Written by every lane that throws something away and read by none.
  static thread_local std::vector<std::byte> bytes(size_t{64} << 10);
  return bytes;
}

Lane::Lane(Loop& loop, std::unique_ptr<Stream> stream, LaneHandler& handler, uint32_t id, std::string preface)
    : loop_(loop), stream_(std::move(stream)), handler_(handler), id_(id), buffer_(kBufferBytes) {
  stream_->set_handler(this);
  if (!preface.empty()) out_.push_back(OutFrame{kPrefaceOp, std::move(preface), {}, {}, {}, {}, false});
  update_interest();
}

Lane::~Lane() {
  if (stream_) stream_->set_handler(nullptr);
}

void Lane::send(OutFrame frame) {
  if (closed_) return;
  out_.push_back(std::move(frame));
  if (out_.size() == 1) flush();
  if (!closed_) update_interest();
}

void Lane::send(std::vector<OutFrame> frames) {
  if (closed_) return;
  const bool idle = out_.empty();
  for (OutFrame& frame : frames) out_.push_back(std::move(frame));
  if (idle) flush();
  if (!closed_) update_interest();
}

Lane::Withdrawn Lane::withdraw(uint64_t op) {
  for (size_t i = 0; i < out_.size(); ++i) {
    if (out_[i].op != op) continue;
    if (i == 0 && head_sent_ > 0) return Withdrawn::partly_sent;
    out_.erase(out_.begin() + static_cast<ptrdiff_t>(i));
    return Withdrawn::unsent;
  }
  return Withdrawn::absent;
}

void Lane::poison(const void* tag, const std::function<std::string(uint64_t op)>& last_head) {
  for (size_t i = 0; i < out_.size(); ++i) {
    OutFrame& frame = out_[i];
    if (frame.tag.get() != tag) continue;
    const bool begun = i == 0 && head_sent_ > 0;
    if (frame.last && !begun) frame.head = last_head(frame.op);
    size_t left = 0;
    const size_t kept = i == 0 ? payload_sent_ : 0;
    for (size_t part = kept; part < frame.payload.size(); ++part) left += frame.payload[part].iov_len;
    frame.payload.resize(kept);
    const MutableByteSpan bin = waste();
    for (; left > 0; left -= frame.payload.back().iov_len)
      frame.payload.push_back({bin.data(), std::min(left, bin.size())});
    frame.pins.clear();
  }
}

bool Lane::sends_from(const RegionState& region) const {
  for (const OutFrame& frame : out_)
    for (const RegionPin& pin : frame.pins)
      if (pin.get() == &region) return true;
  return false;
}

void Lane::pause_input(bool paused) {
  if (paused_ == paused || closed_) return;
  paused_ = paused;
  update_interest();
  // What is parsed already would otherwise wait for the next byte from the peer.
  if (!paused)
    loop_.defer([this] {
      if (!closed_ && !paused_) parse_buffer();
    });
}

void Lane::discard_incoming() {
  if (in_payload_) discard_ = true;
}

void Lane::close(bool reset) {
  if (closed_) return;
  closed_ = true;
  stream_->set_handler(nullptr);
  out_.clear();
  if (!reset) return stream_->want(false, false);
  // Now, not when this lane goes: the outcome of what is given up with it may be told before that (I4).
  stream_->reset_on_close();
  stream_.reset();
}

void Lane::fail(Error error) {
  if (closed_) return;
  close(true);
  handler_.on_lost(*this, std::move(error));
}

void Lane::update_interest() {
  if (!closed_) stream_->want(!paused_, !out_.empty());
}

void Lane::on_stream_ready(bool readable, bool writable) {
  if (writable) flush();
  if (!closed_ && readable && !paused_) read_input();
  update_interest();
}

bool Lane::admit() {
  if (discard_ || handler_.may_scatter(*this)) return !closed_;
  fail(Error{ErrorCode::peer_lost, "the peer has given up on this lane"});
  return false;
}

// What the next read fills: the rest of the payload (at most a slice of it when it is scattered into memory that the
// other side writes to), and behind a payload that this can complete, the buffer for the next header.
size_t Lane::gather_targets(std::vector<iovec>& into) {
  into.clear();
  size_t expected = 0;
  if (in_payload_) {
    const size_t limit = header_.type == FrameType::write ? kSlice : kTurnBytes;
    if (discard_) {
      const MutableByteSpan bin = waste();
      into.push_back({bin.data(), std::min<size_t>(bin.size(), payload_left_)});
      expected = into.back().iov_len;
    } else {
      for (size_t i = payload_index_; i < payload_.size() && expected < limit && into.size() < IOV_MAX - 1; ++i) {
        iovec part = payload_[i];
        part.iov_len = std::min(part.iov_len, limit - expected);
        expected += part.iov_len;
        into.push_back(part);
      }
    }
    if (expected < payload_left_) return expected;
  }
  if (begin_ == end_) begin_ = end_ = 0;
  if (end_ == buffer_.size()) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  into.push_back({buffer_.data() + end_, buffer_.size() - end_});
  return expected;
}

void Lane::read_input() {
  for (size_t moved = 0; moved < kTurnBytes && !closed_ && !paused_;) {
    if (in_payload_ && !admit()) return;
    const size_t expected = gather_targets(scratch_);
    const size_t room = [&] {
      size_t total = 0;
      for (const iovec& part : scratch_) total += part.iov_len;
      return total;
    }();
    auto count = stream_->read(scratch_);
    if (!count) return fail(std::move(count).error());
    if (*count == 0) break;
    moved += *count;
    const size_t of_payload = std::min(*count, expected);
    end_ += *count - of_payload;
    if (in_payload_) advance_payload(of_payload);
    parse_buffer();
    if (*count < room && !(in_payload_ && *count >= kFlowing)) break;  // the next event will say when there is more
  }
  await_payload();
}

// Whoever is woken for each packet keeps the sender busy with waking. Woken for each slice, this side copies one out of
// the socket while the kernel, here and there, moves the next.
void Lane::await_payload() {
  if (closed_) return;
  stream_->wake_at(in_payload_ ? std::clamp<uint64_t>(payload_left_, 1, kSlice) : 1);
}

void Lane::advance_payload(size_t count) {
  payload_left_ -= count;
  for (; count > 0 && !discard_; ++payload_index_) {
    iovec& part = payload_[payload_index_];
    if (count < part.iov_len) {
      part.iov_base = static_cast<char*>(part.iov_base) + count;
      part.iov_len -= count;
      return;
    }
    count -= part.iov_len;
  }
}

void Lane::copy_to_payload() {
  size_t count = std::min<uint64_t>(end_ - begin_, payload_left_);
  const std::byte* from = buffer_.data() + begin_;
  begin_ += count;
  if (!discard_) {
    size_t left = count;
    for (size_t i = payload_index_; left > 0; ++i) {
      const size_t part = std::min(left, payload_[i].iov_len);
      std::memcpy(payload_[i].iov_base, from, part);
      from += part;
      left -= part;
    }
  }
  advance_payload(count);
}

void Lane::parse_buffer() {
  while (!closed_) {
    if (in_payload_) {
      if (payload_left_ > 0) {
        if (begin_ == end_ || !admit()) return;
        copy_to_payload();
        if (payload_left_ > 0) return;
      }
      end_frame();
    } else if (paused_ || !begin_frame()) {
      return;
    }
  }
}

bool Lane::begin_frame() {
  if (end_ - begin_ < Header::kBytes) return false;
  auto header = decode_header(ByteSpan(buffer_).subspan(begin_, Header::kBytes));
  if (!header) return fail(std::move(header).error()), false;
  const size_t needed = Header::kBytes + header->table_bytes;
  if (end_ - begin_ < needed) {
    if (buffer_.size() - begin_ < needed) {
      std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
      end_ -= begin_;
      begin_ = 0;
      if (buffer_.size() < needed) buffer_.resize(needed);
    }
    return false;
  }
  header_ = *header;
  const ByteSpan table = ByteSpan(buffer_).subspan(begin_ + Header::kBytes, header_.table_bytes);
  begin_ += needed;
  auto target = handler_.on_frame(*this, header_, table);
  if (closed_) return false;
  if (!target) return fail(std::move(target).error()), false;
  payload_ = std::move(*target);
  payload_index_ = 0;
  payload_left_ = header_.payload_bytes;
  discard_ = payload_.empty();
  in_payload_ = true;
  return true;
}

void Lane::end_frame() {
  in_payload_ = false;
  discard_ = false;
  handler_.on_frame_end(*this, header_);
}

void Lane::flush() {
  for (size_t moved = 0; moved < kTurnBytes && !out_.empty() && !closed_;) {
    scratch_.clear();
    size_t head_skip = head_sent_;
    size_t payload_skip = payload_sent_;
    size_t bytes = 0;
    for (const OutFrame& frame : out_) {
      if (scratch_.size() + 2 > IOV_MAX || bytes >= kTurnBytes) break;
      if (head_skip < frame.head.size())
        scratch_.push_back({const_cast<char*>(frame.head.data()) + head_skip, frame.head.size() - head_skip});
      for (size_t i = payload_skip; i < frame.payload.size() && scratch_.size() < IOV_MAX; ++i) {
        scratch_.push_back(frame.payload[i]);
        bytes += frame.payload[i].iov_len;
      }
      head_skip = payload_skip = 0;
    }
    size_t wanted = 0;
    for (const iovec& part : scratch_) wanted += part.iov_len;
    auto count = stream_->write(scratch_);
    if (!count) return fail(std::move(count).error());
    if (*count == 0) return;
    moved += *count;
    drop_sent(*count);
    if (*count < wanted) return;
  }
}

void Lane::drop_sent(size_t count) {
  bytes_sent_ += count;
  while (!out_.empty()) {
    OutFrame& frame = out_.front();
    const size_t of_head = std::min(count, frame.head.size() - head_sent_);
    head_sent_ += of_head;
    count -= of_head;
    while (count > 0 && payload_sent_ < frame.payload.size()) {
      iovec& part = frame.payload[payload_sent_];
      if (count < part.iov_len) {
        part.iov_base = static_cast<char*>(part.iov_base) + count;
        part.iov_len -= count;
        return;
      }
      count -= part.iov_len;
      ++payload_sent_;
    }
    if (head_sent_ < frame.head.size() || payload_sent_ < frame.payload.size()) return;
    out_.pop_front();
    head_sent_ = payload_sent_ = 0;
  }
  handler_.on_drained(*this);
}

}  // namespace kvferry::tcp
