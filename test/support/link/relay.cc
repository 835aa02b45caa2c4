#include "test/support/link/relay.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <utility>
#include <vector>

#include "common/config.h"

namespace kvferry::test {
namespace {

Error not_a_command(std::string_view line) {
  return Error{ErrorCode::invalid_argument, fmt::format("not a command: \"{}\"", line), {}, {}, {}};
}

Result<double> parse_probability(std::string_view text) {
  double value = -1;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc() || end != text.data() + text.size() || !(value >= 0 && value <= 1))
    return Error{ErrorCode::invalid_argument, fmt::format("not a probability: \"{}\"", text), {}, {}, {}};
  return value;
}

// Applies a command of `words` (without a side) to a shape.
Status apply(const std::vector<std::string>& words, std::string_view line, Shape& shape) {
  const bool has_value = words.size() == 2;
  if (words.size() == 1 && (words[0] == "cut" || words[0] == "heal")) {
    shape.cut = words[0] == "cut";
  } else if (has_value && words[0] == "loss") {
    KVF_ASSIGN_OR_RETURN(shape.loss, parse_probability(words[1]));
  } else if (has_value && words[0] == "duplicate") {
    KVF_ASSIGN_OR_RETURN(shape.duplicate, parse_probability(words[1]));
  } else if (has_value && words[0] == "delay") {
    KVF_ASSIGN_OR_RETURN(shape.delay, parse_duration(words[1]));
  } else if (has_value && words[0] == "rate") {
    KVF_ASSIGN_OR_RETURN(shape.bytes_per_second, parse_size(words[1]));
  } else if (has_value && words[0] == "queue") {
    KVF_ASSIGN_OR_RETURN(shape.queue, parse_size(words[1]));
  } else {
    return not_a_command(line);
  }
  return {};
}

}  // namespace

bool Direction::happens(double probability) {
  // 53 random bits, so that the same seed gives the same losses on every machine. One draw a question, whatever the
  // probability, so that changing one of them does not shift the others.
  const double draw = static_cast<double>(random_.next() >> 11) * 0x1p-53;
  return draw < probability;
}

void Direction::offer(std::string packet, TimePoint now) {
  const bool lost = happens(shape_.loss);
  const bool duplicated = happens(shape_.duplicate);
  if (shape_.cut) {
    ++counters_.cut;
    return;
  }
  if (lost) {
    ++counters_.lost;
    return;
  }
  if (duplicated) {
    ++counters_.duplicated;
    enqueue(packet, now);
  }
  enqueue(std::move(packet), now);
}

void Direction::enqueue(std::string packet, TimePoint now) {
  if (waiting_bytes_ + packet.size() > shape_.queue) {
    ++counters_.overflowed;
    return;
  }
  TimePoint sent = now;
  if (shape_.bytes_per_second > 0) {
    const double seconds_on_line = static_cast<double>(packet.size()) / static_cast<double>(shape_.bytes_per_second);
    line_free_ = std::max(now, line_free_) + Duration(static_cast<int64_t>(seconds_on_line * 1e9));
    sent = line_free_;
  }
  last_due_ = std::max(last_due_, sent + shape_.delay);
  waiting_bytes_ += packet.size();
  waiting_.push_back({last_due_, std::move(packet)});
}

std::optional<std::string> Direction::take(TimePoint now) {
  if (waiting_.empty() || waiting_.front().due > now) return std::nullopt;
  std::string packet = std::move(waiting_.front().packet);
  waiting_.pop_front();
  waiting_bytes_ -= packet.size();
  ++counters_.forwarded;
  return packet;
}

TimePoint Direction::next_due() const {
  return waiting_.empty() ? kNever : waiting_.front().due;
}

void Direction::set_shape(const Shape& shape) {
  shape_ = shape;
  if (shape_.cut) {
    counters_.cut += waiting_.size();
    waiting_.clear();
    waiting_bytes_ = 0;
  }
  // The line and the last packet are those of the new shape from here on.
  if (waiting_.empty()) line_free_ = last_due_ = TimePoint{};
}

Result<std::string> Relay::command(std::string_view line) {
  std::vector<std::string> words = split_list(line, ' ');
  bool left = true;
  bool right = true;
  if (words.size() > 1 && (words.back() == "left" || words.back() == "right")) {
    left = words.back() == "left";
    right = !left;
    words.pop_back();
  }
  if (words.empty()) return not_a_command(line);
  RelayCounters sum;
  for (size_t side = 0; side < directions_.size(); ++side) {
    if (!(side == 0 ? left : right)) continue;
    Direction& direction = directions_[side];
    const RelayCounters& counters = direction.counters();
    sum.forwarded += counters.forwarded;
    sum.lost += counters.lost;
    sum.duplicated += counters.duplicated;
    sum.cut += counters.cut;
    sum.overflowed += counters.overflowed;
    if (words.size() == 1 && words[0] == "stats") continue;
    Shape shape = direction.shape();
    KVF_RETURN_IF_ERROR(apply(words, line, shape));
    direction.set_shape(shape);
  }
  if (words[0] != "stats") return std::string();
  return fmt::format("forwarded={} lost={} duplicated={} cut={} overflowed={}", sum.forwarded, sum.lost, sum.duplicated,
                     sum.cut, sum.overflowed);
}

}  // namespace kvferry::test
