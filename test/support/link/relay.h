#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>

#include "common/clock.h"
#include "common/random.h"
#include "common/result.h"

namespace kvferry::test {

// What one direction of a link does to its packets.
struct Shape {
  double loss = 0;                // probability
  double duplicate = 0;           // probability
  Duration delay{0};              // one way
  uint64_t bytes_per_second = 0;  // 0: unlimited
  uint64_t queue = 8 << 20;       // bytes of packets on their way at most; then the tail is dropped, as in a switch
  bool cut = false;
};

struct RelayCounters {
  uint64_t forwarded = 0;
  uint64_t lost = 0;
  uint64_t duplicated = 0;
  uint64_t cut = 0;         // dropped because the link is cut
  uint64_t overflowed = 0;  // dropped because the queue in front of the rate limit was full
};

// One direction of a link: packets in, the same packets out later, or not at all. Pure: time and chance are given.
// Never reorders, also when the delay is made shorter. Not thread-safe.
class Direction {
 public:
  explicit Direction(uint64_t seed) : random_(seed) {}

  void offer(std::string packet, TimePoint now);
  // The next packet whose time has come.
  std::optional<std::string> take(TimePoint now);
  // When `take` will next have one; kNever when nothing is on its way.
  TimePoint next_due() const;

  const Shape& shape() const { return shape_; }
  // A cut also loses what is on its way, as a pulled cable does.
  void set_shape(const Shape& shape);
  const RelayCounters& counters() const { return counters_; }

 private:
  struct Waiting {
    TimePoint due;
    std::string packet;
  };
  bool happens(double probability);
  void enqueue(std::string packet, TimePoint now);

  SeededRandom random_;
  Shape shape_;
  RelayCounters counters_;
  std::deque<Waiting> waiting_;
  size_t waiting_bytes_ = 0;
  TimePoint line_free_{};  // when the rate limit lets the next packet start
  TimePoint last_due_{};
};

// Both directions, and the commands that shape them.
class Relay {
 public:
  explicit Relay(uint64_t seed) : directions_{Direction(seed), Direction(~seed)} {}

  // Index 0: packets that the left side sends; 1: the right side's.
  Direction& from(size_t side) { return directions_[side]; }

  // One line, to both directions or, with a last word `left` or `right`, to what that side sends:
  //   loss P | duplicate P | delay DURATION | rate SIZE (bytes a second, 0 for no limit) | queue SIZE |
  //   cut | heal | stats
  // Returns the answer: empty, or for `stats` "forwarded=N lost=N duplicated=N cut=N overflowed=N", summed up.
  Result<std::string> command(std::string_view line);

 private:
  std::array<Direction, 2> directions_;
};

}  // namespace kvferry::test
