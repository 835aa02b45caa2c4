#pragma once

#include <map>
#include <string>
#include <string_view>
#include <tuple>

#include "common/metrics.h"

namespace kvferry::proxy {

// Names, labels and meaning: docs/proxy.md.
class Metrics {
 public:
  Metrics();

  // One leg ended. `leg`: prefill, decode, alone, pass or front; `status`: HTTP's, 0 without one; `cause`: ok, or why.
  void leg(std::string_view leg, int status, std::string_view cause, std::string_view backend);

  // One request that a prefiller and a decoder serve together, as long as it lives.
  class Pair {
   public:
    Pair(Metrics& metrics, const std::string& prefill, const std::string& decode);
    ~Pair() { live_.add(-1); }
    Pair(const Pair&) = delete;
    Pair& operator=(const Pair&) = delete;

   private:
    Gauge& live_;
  };

  MetricsRegistry registry;
  Histogram& prefill_seconds;
  Histogram& handover_seconds;    // the prefiller's answer -> the decoder's first byte
  Histogram& first_byte_seconds;  // the request's last byte -> the first byte of its answer
  Histogram& total_seconds;
  Counter& relayed_bytes;
  Counter& relay_pieces;
  Counter& canary_moved;
  Counter& canary_not_moved;
  Counter& canary_failed;
  Gauge& in_flight;
  Gauge& queued;

 private:
  struct PairSeries {
    Gauge& live;
    Counter& total;
  };
  const PairSeries& pair(const std::string& prefill, const std::string& decode);

  using Leg = std::tuple<std::string_view, int, std::string_view, std::string_view>;
  struct LessLeg {  // std::less<> cannot compare tuples of different strings in every compiler
    using is_transparent = void;
    bool operator()(const Leg& a, const Leg& b) const { return a < b; }
  };
  std::map<std::tuple<std::string, int, std::string, std::string>, Counter*, LessLeg> legs_;
  std::map<std::pair<std::string, std::string>, PairSeries> pairs_;
};

}  // namespace kvferry::proxy
