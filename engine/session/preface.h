#pragma once

#include <cstdint>
#include <string>

#include "common/bytes.h"
#include "common/result.h"

namespace kvferry {

// The first bytes of a connection (proto/control.proto): what it is going to be.
struct Preface {
  static constexpr size_t kBytes = 16;      // of every connection
  static constexpr size_t kLaneBytes = 32;  // more, for a lane
  static constexpr size_t kTokenBytes = 16;

  bool is_lane = false;
};

struct LanePreface {
  uint64_t session_id = 0;
  std::string token;
  uint32_t lane_id = 0;
};

std::string encode_session_preface();
std::string encode_lane_preface(const LanePreface& lane);
Result<Preface> decode_preface(ByteSpan bytes);           // REQUIRES: Preface::kBytes of them
Result<LanePreface> decode_lane_preface(ByteSpan bytes);  // REQUIRES: Preface::kLaneBytes of them

}  // namespace kvferry
