#pragma once

#include <memory>
#include <string>
#include <unordered_set>

#include "engine/io/loop.h"
#include "engine/io/stream.h"

namespace kvferry::proto {
class Frame;
}

namespace kvferry {

class Frames;

// What the sessions of one engine hold together of frames that are not whole yet and of those that have not left (I6).
// On loop only.
struct FrameRoom {
  size_t limit = SIZE_MAX;  // of all of them; beyond it those are given up that hold most
  size_t share = 0;         // what each may hold, whatever the others do
  size_t held = 0;
  std::unordered_set<Frames*> members = {};
};

class FramesHandler {
 public:
  virtual ~FramesHandler() = default;
  virtual void on_frame(const proto::Frame& frame) = 0;
  // The connection failed or broke the rules; nothing is called after this.
  virtual void on_frames_lost(Error error) = 0;
  // What was queued has left, after it had to wait.
  virtual void on_frames_drained() {}
};

// Length-prefixed protobuf frames over a byte stream, within limits. On loop only.
class Frames final : private StreamHandler {
 public:
  struct Limits {
    size_t frame_bytes = size_t{1} << 20;   // a longer one ends the connection
    size_t queued_bytes = size_t{8} << 20;  // a peer that does not read what we send is given up at this
    std::shared_ptr<FrameRoom> room;        // null: no limit but these
  };

  // `handler` outlives this. `preface` goes out first.
  Frames(std::unique_ptr<Stream> stream, FramesHandler& handler, Limits limits, std::string preface);
  ~Frames() override;

  void send(const proto::Frame& frame);
  // As send(), but it may stay here until the next send() or flush_held().
  void hold(const proto::Frame& frame);
  void flush_held();
  // Handles what has arrived now, without waiting for the loop to say so (I4: Guest::still_welcome).
  void read_input();
  bool has_input() const { return !closed_ && stream_->has_input(); }

  // No more calls to the handler. With `flush` what is queued is offered to the socket once more.
  void close(bool flush);
  bool closed() const { return closed_; }
  size_t queued_bytes() const { return out_.size() - out_sent_; }
  std::string peer_address() const { return stream_->peer_address(); }

 private:
  void on_stream_ready(bool readable, bool writable) override;
  void parse();
  bool queue(const proto::Frame& frame);
  void flush();
  void fail(Error error);
  // Gives back what a large frame took. False: the room of all was used up, and this was ended for it.
  bool keep_within_room();
  void leave_room();

  const std::unique_ptr<Stream> stream_;
  FramesHandler& handler_;
  const Limits limits_;
  bool closed_ = false;
  std::string in_;
  std::string out_;
  size_t out_sent_ = 0;
  bool held_ = false;     // nobody has tried to send what is queued
  size_t accounted_ = 0;  // of the room
};

}  // namespace kvferry
