#include "http/chunked.h"

#include <algorithm>

namespace kvferry::http {
namespace {

constexpr int kMaxSizeDigits = 15;
constexpr uint32_t kMaxLine = 4096;              // one chunk extension
constexpr uint32_t kMaxTrailerBytes = 16 << 10;  // all trailer lines of a body

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

bool control(char c) {
  return static_cast<unsigned char>(c) < 0x20 && c != '\t';
}

}  // namespace

Result<size_t> ChunkScanner::scan(std::string_view input, std::string* payload) {
  size_t at = 0;
  while (at < input.size() && state_ != State::done) {
    if (state_ == State::data) {
      const auto piece = static_cast<size_t>(std::min<uint64_t>(left_, input.size() - at));
      if (payload) payload->append(input.substr(at, piece));
      at += piece;
      left_ -= piece;
      payload_bytes_ += piece;
      if (left_ == 0) state_ = State::data_cr;
      continue;
    }
    if (!step(input[at])) return Error{ErrorCode::protocol, "malformed chunked body", "", "", ""};
    ++at;
  }
  return at;
}

bool ChunkScanner::step_size(char c) {
  if (const int value = hex_value(c); value >= 0) {
    left_ = left_ * 16 + static_cast<uint64_t>(value);
    return ++digits_ <= kMaxSizeDigits;
  }
  if (digits_ == 0) return false;
  line_bytes_ = 0;
  if (c == '\r') {
    state_ = State::size_lf;
    return true;
  }
  if (c != ';' || extensions_ == Extensions::refuse) return false;
  state_ = State::extension;
  return true;
}

bool ChunkScanner::step(char c) {
  switch (state_) {
    case State::size:
      return step_size(c);
    case State::extension:
      if (c == '\r') {
        state_ = State::size_lf;
        return true;
      }
      return !control(c) && ++line_bytes_ <= kMaxLine;
    case State::size_lf:
      state_ = left_ > 0 ? State::data : State::trailer;
      digits_ = 0;
      line_bytes_ = 0;
      return c == '\n';
    case State::data_cr:
      state_ = State::data_lf;
      return c == '\r';
    case State::data_lf:
      state_ = State::size;
      return c == '\n';
    case State::trailer:
      if (c == '\r') {
        state_ = State::trailer_lf;
        return true;
      }
      if (++line_bytes_ == 1) ++trailers_;
      return !control(c) && ++trailer_bytes_ <= kMaxTrailerBytes && trailers_ <= kMaxFields;
    case State::trailer_lf:
      state_ = line_bytes_ == 0 ? State::done : State::trailer;
      line_bytes_ = 0;
      return c == '\n';
    case State::data:
    case State::done:
      break;
  }
  return false;
}

BodyTracker::BodyTracker(const ResponseHead& head)
    : framing_(head.framing),
      left_(head.content_length),
      done_(framing_ == Framing::none || (framing_ == Framing::length && left_ == 0)) {}

Result<size_t> BodyTracker::take(std::string_view input, std::string* payload) {
  if (done_) return size_t{0};
  if (framing_ == Framing::chunked) {
    KVF_ASSIGN_OR_RETURN(const size_t used, chunks_.scan(input, payload));
    done_ = chunks_.done();
    return used;
  }
  size_t used = input.size();
  if (framing_ == Framing::length) {
    used = static_cast<size_t>(std::min<uint64_t>(used, left_));
    left_ -= used;
    done_ = left_ == 0;
  }
  if (payload) payload->append(input.substr(0, used));
  return used;
}

bool BodyTracker::end_of_stream() {
  if (framing_ == Framing::until_close) done_ = true;
  return done_;
}

}  // namespace kvferry::http
