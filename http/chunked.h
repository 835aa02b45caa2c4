#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/result.h"
#include "http/message.h"

namespace kvferry::http {

// Follows chunked framing through bytes that arrive in any pieces, without copying: the proxy relays the bytes as they
// are and only needs to know where they end. State table:
//   size -> (extension) -> size_lf -> data -> data_cr -> data_lf -> size ...; size 0 -> trailers -> done
class ChunkScanner {
 public:
  enum class Extensions { refuse, skip };
  explicit ChunkScanner(Extensions extensions) : extensions_(extensions) {}

  // Reads from the front of `input` until it is used up or the body ends; returns how much was used. Payload is
  // appended to `payload` if that is given.
  Result<size_t> scan(std::string_view input, std::string* payload = nullptr);

  bool done() const { return state_ == State::done; }
  bool between_chunks() const { return state_ == State::size && digits_ == 0; }
  uint64_t payload_bytes() const { return payload_bytes_; }

 private:
  enum class State { size, extension, size_lf, data, data_cr, data_lf, trailer, trailer_lf, done };
  // Takes one framing byte; false if it may not stand here.
  bool step(char c);
  bool step_size(char c);

  Extensions extensions_;
  State state_ = State::size;
  uint64_t left_ = 0;           // of this chunk's data
  int digits_ = 0;              // of the size read so far
  uint32_t line_bytes_ = 0;     // of this extension or trailer line
  uint32_t trailer_bytes_ = 0;  // of all trailers
  uint32_t trailers_ = 0;
  uint64_t payload_bytes_ = 0;
};

// Follows any framing to the end of a body.
class BodyTracker {
 public:
  explicit BodyTracker(const ResponseHead& head);

  // How many of these bytes belong to the body; payload as above.
  Result<size_t> take(std::string_view input, std::string* payload = nullptr);
  // What the closed connection means: true if the body was complete.
  bool end_of_stream();

  bool done() const { return done_; }
  bool between_chunks() const { return framing_ == Framing::chunked && chunks_.between_chunks(); }

 private:
  Framing framing_;
  uint64_t left_;
  ChunkScanner chunks_{ChunkScanner::Extensions::skip};
  bool done_;
};

}  // namespace kvferry::http
