#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "engine/fabric/tcp/wire.h"
#include "engine/io/loop.h"
#include "engine/io/stream.h"
#include "engine/memory/staging.h"

namespace kvferry::tcp {

class Lane;

// Either end of a lane.
class LaneHandler {
 public:
  virtual ~LaneHandler() = default;
  // Header and table are here. Returns where the payload goes; nothing: it is thrown away. An Error ends the lane.
  virtual Result<std::vector<iovec>> on_frame(Lane& lane, const Header& header, ByteSpan table) = 0;
  // I4: before each slice of a payload. False: stop reading this lane for good.
  virtual bool may_scatter(Lane& lane) = 0;
  // The whole payload of the last on_frame() has been scattered.
  virtual void on_frame_end(Lane& lane, const Header& header) = 0;
  // The last queued frame has left.
  virtual void on_drained(Lane& lane) = 0;
  // The connection failed; nothing is called after this. The lane is still there until its owner retires it.
  virtual void on_lost(Lane& lane, Error error) = 0;
};

// A frame to send. Its payload memory stays pinned until the last byte is in the socket.
struct OutFrame {
  uint64_t op = 0;
  std::string head;  // header and table
  std::vector<iovec> payload;
  std::vector<RegionPin> pins;
  Staging::Buffer staging;
  std::shared_ptr<const void> tag;  // whose frame it is; let go when the frame has left, or the lane is closed
  bool last = false;                // of its tag
};

// One data connection: frames in, frames out, the bytes of a payload straight between the socket and its spans. Knows
// neither transfers nor regions. On loop only.
class Lane final : private StreamHandler {
 public:
  // A slice is what may land after the other side has reset the lane (I4).
  static constexpr size_t kSlice = size_t{256} << 10;

  // `preface` is sent before the first frame. `handler` outlives the lane.
  Lane(Loop& loop, std::unique_ptr<Stream> stream, LaneHandler& handler, uint32_t id, std::string preface);
  ~Lane() override;

  uint32_t id() const { return id_; }
  const Stream& stream() const { return *stream_; }

  void send(OutFrame frame);
  void send(std::vector<OutFrame> frames);
  size_t queued_frames() const { return out_.size(); }
  // Bytes that the socket has taken.
  uint64_t bytes_sent() const { return bytes_sent_; }
  // Takes a frame back. `unsent`: no byte of it has left. `absent`: it has left whole, or was never here.
  enum class Withdrawn { unsent, partly_sent, absent };
  Withdrawn withdraw(uint64_t op);
  // Every byte of `tag`'s queued payload that has not left is replaced by waste, and its last frame, if no byte of it
  // has left, by `last_head(op)`: how a stream is ended whose memory is being given back (I2).
  void poison(const void* tag, const std::function<std::string(uint64_t op)>& last_head);
  // Whether the payload of this operation's answer is arriving now.
  bool receiving(uint64_t op) const { return in_payload_ && header_.op == op; }
  // Whether a queued frame carries memory of `region`.
  bool sends_from(const RegionState& region) const;

  // Input stops, or goes on.
  void pause_input(bool paused);
  // The payload being received goes nowhere from here on.
  void discard_incoming();

  // Ends the lane without on_lost(); `reset`: so that the peer does not apply what it has not read (I4).
  void close(bool reset);
  bool closed() const { return closed_; }

 private:
  void on_stream_ready(bool readable, bool writable) override;
  void read_input();
  void await_payload();
  size_t gather_targets(std::vector<iovec>& into);
  void parse_buffer();
  bool begin_frame();
  void end_frame();
  bool admit();
  void advance_payload(size_t count);
  void copy_to_payload();
  void flush();
  void drop_sent(size_t count);
  void fail(Error error);
  void update_interest();

  Loop& loop_;
  std::unique_ptr<Stream> stream_;
  LaneHandler& handler_;
  const uint32_t id_;
  bool closed_ = false;
  bool paused_ = false;

  // Input: bytes [begin_, end_) of buffer_ are not parsed yet.
  std::vector<std::byte> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
  bool in_payload_ = false;
  Header header_;
  std::vector<iovec> payload_;  // what is left to fill
  size_t payload_index_ = 0;
  uint64_t payload_left_ = 0;
  bool discard_ = false;

  // Output.
  std::deque<OutFrame> out_;
  size_t head_sent_ = 0;     // of out_.front().head
  size_t payload_sent_ = 0;  // whole iovecs of out_.front().payload
  uint64_t bytes_sent_ = 0;
  std::vector<iovec> scratch_;
};

// Where a discarded payload goes.
MutableByteSpan waste();

}  // namespace kvferry::tcp
