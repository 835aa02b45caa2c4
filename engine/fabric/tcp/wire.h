#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/bytes.h"
#include "common/result.h"
#include "engine/plan/coalesce.h"

namespace kvferry::tcp {

// A lane carries frames: this header, `table_bytes` of table, `payload_bytes` of payload. All little-endian.
//
//   type         direction          table                     payload
//   read         initiator -> owner spans                     -
//   write        initiator -> owner spans                     the bytes, in the order of the spans
//   read_reply   owner -> initiator error text if code != 0   the bytes if code == 0
//   write_reply  owner -> initiator error text if code != 0   -      (sent when the bytes are visible, I8)
//   fetch        initiator -> owner what to stream, opaque    -
//   fetch_head   owner -> initiator opaque, or error text     -      (code != 0: the end of this fetch)
//   fetch_data   owner -> initiator -                         the next bytes of the stream
//   fetch_end    owner -> initiator opaque trailer            -
//
// A table of spans is a list of groups {u64 region, u32 count, u32 length}, each followed by `count` entries: u64
// offset if the group's `length` is not 0 (all spans of it have that length), else {u64 offset, u32 length}.
enum class FrameType : uint8_t {
  read = 1,
  write = 2,
  read_reply = 3,
  write_reply = 4,
  fetch = 5,
  fetch_head = 6,
  fetch_data = 7,
  fetch_end = 8,
};

struct Header {
  static constexpr uint32_t kMagic = 0x314c564b;  // "KVL1"
  static constexpr size_t kBytes = 32;

  FrameType type = FrameType::read;
  uint16_t code = 0;  // ErrorCode of a reply; 0: ok
  uint32_t table_bytes = 0;
  uint64_t op = 0;  // chosen by the initiator, unique on the lane; a reply carries its request's
  uint64_t payload_bytes = 0;
};

// Of one frame; what exceeds them is a protocol error and ends the lane (I6).
constexpr uint64_t kMaxPayload = uint64_t{4} << 20;
constexpr size_t kMaxSpans = 4096;
constexpr size_t kMaxTable =
    size_t{1} << 20;  // a ticket with its layout and block ids; span tables take 28 bytes a span

// What a reply with a code other than 0 says; a code that this build does not know is `internal`.
ErrorCode code_of(const Header& header);

void encode_header(const Header& header, std::string& out);
// REQUIRES: bytes.size() == Header::kBytes. Refuses a wrong magic, an unknown type and anything over the limits.
Result<Header> decode_header(ByteSpan bytes);

struct RemoteSpan {
  RegionId region;
  uint64_t offset;
  uint32_t length;
};

void encode_spans(std::span<const Pair> pairs, const Chunk& chunk, std::string& out);
// The spans, none empty, and at most kMaxSpans of them.
Result<std::vector<RemoteSpan>> decode_spans(ByteSpan table);

}  // namespace kvferry::tcp
