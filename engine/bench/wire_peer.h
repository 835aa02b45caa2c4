#pragma once

#include <cstdint>
#include <deque>
#include <string>

#include "engine/bench/channel.h"
#include "engine/types.h"
#include "proto/control.pb.h"

namespace kvferry::bench {

// A peer that speaks the protocol of proto/control.proto over plain blocking sockets, without an engine: cheap enough
// to have a thousand of, and able to be slower than any engine.
class WirePeer {
 public:
  // Greeted, and told all regions, when it returns.
  static Result<WirePeer> connect(const std::string& address, const std::string& engine_id);

  int fd() const { return fd_.get(); }
  Status beat();
  // Takes what has come without waiting for more; the number of heartbeats' echoes in it.
  Result<size_t> take_echoes();

  // A lane of the session, ready for frames (engine/fabric/tcp/wire.h).
  Result<UniqueFd> open_lane();
  // The largest region that was told.
  RegionId region() const { return region_; }
  uint64_t region_length() const { return region_length_; }

 private:
  Status send(const proto::Frame& frame);
  Result<proto::Frame> receive();

  std::string address_;
  UniqueFd fd_;
  std::string pending_;
  uint64_t next_number_ = 1;
  uint64_t session_id_ = 0;
  std::deque<std::string> tokens_;
  uint32_t next_lane_ = 1;
  RegionId region_ = 0;
  uint64_t region_length_ = 0;
};

// The roles that this program plays with them, for ever.
// Beats once a second for each of `sessions`; prints `ready`, and each second how many beats were echoed in it.
Status run_crowd(const std::string& address, size_t sessions);
// Reads the peer's memory and takes the bytes no faster than asked; prints `reading` when the first have come.
Status run_reader(const std::string& address, double bytes_per_second);

}  // namespace kvferry::bench
