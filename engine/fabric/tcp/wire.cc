#include "engine/fabric/tcp/wire.h"

#include <algorithm>

namespace kvferry::tcp {
namespace {

Error malformed(std::string what) {
  return Error{ErrorCode::protocol, "malformed lane frame: " + std::move(what)};
}

struct Group {
  RegionId region;
  uint32_t count = 0;
  uint32_t length = 0;  // 0: lengths differ
};

}  // namespace

ErrorCode code_of(const Header& header) {
  const bool known = header.code >= 1 && header.code <= static_cast<uint16_t>(ErrorCode::internal);
  return known ? static_cast<ErrorCode>(header.code) : ErrorCode::internal;
}

void encode_header(const Header& header, std::string& out) {
  ByteWriter writer(out);
  writer.put(Header::kMagic);
  writer.put(static_cast<uint16_t>(header.type));
  writer.put(header.code);
  writer.put(header.table_bytes);
  writer.put(uint32_t{0});
  writer.put(header.op);
  writer.put(header.payload_bytes);
}

Result<Header> decode_header(ByteSpan bytes) {
  ByteReader reader(bytes);
  Header header;
  if (reader.get<uint32_t>() != Header::kMagic) return malformed("wrong magic");
  const auto type = reader.get<uint16_t>();
  if (type < 1 || type > 8) return malformed("unknown type " + std::to_string(type));
  header.type = static_cast<FrameType>(type);
  header.code = reader.get<uint16_t>();
  header.table_bytes = reader.get<uint32_t>();
  reader.get<uint32_t>();
  header.op = reader.get<uint64_t>();
  header.payload_bytes = reader.get<uint64_t>();
  if (!reader.ok()) return malformed("short header");
  if (header.table_bytes > kMaxTable) return malformed("table of " + std::to_string(header.table_bytes) + " bytes");
  if (header.payload_bytes > kMaxPayload)
    return malformed("payload of " + std::to_string(header.payload_bytes) + " bytes");
  return header;
}

void encode_spans(std::span<const Pair> pairs, const Chunk& chunk, std::string& out) {
  std::vector<RemoteSpan> spans;
  spans.reserve(chunk.count);
  for_each_pair(pairs, chunk, [&](const Pair& pair) {
    spans.push_back({pair.region, pair.offset, static_cast<uint32_t>(pair.length)});
  });
  ByteWriter writer(out);
  for (size_t first = 0; first < spans.size();) {
    size_t end = first;
    bool equal = true;
    while (end < spans.size() && spans[end].region == spans[first].region)
      equal &= spans[end++].length == spans[first].length;
    writer.put(spans[first].region);
    writer.put(static_cast<uint32_t>(end - first));
    writer.put(equal ? spans[first].length : uint32_t{0});
    for (; first < end; ++first) {
      writer.put(spans[first].offset);
      if (!equal) writer.put(spans[first].length);
    }
  }
}

Result<std::vector<RemoteSpan>> decode_spans(ByteSpan table) {
  ByteReader reader(table);
  std::vector<RemoteSpan> spans;
  while (reader.ok() && !reader.at_end()) {
    Group group{reader.get<uint64_t>(), 0, 0};
    group.count = reader.get<uint32_t>();
    group.length = reader.get<uint32_t>();
    if (!reader.ok() || group.count == 0) return malformed("bad group");
    if (group.count > kMaxSpans - spans.size()) return malformed("too many spans");
    if (reader.rest().size() < size_t{group.count} * (group.length != 0 ? 8 : 12)) return malformed("short table");
    for (uint32_t i = 0; i < group.count; ++i) {
      const auto offset = reader.get<uint64_t>();
      const uint32_t length = group.length != 0 ? group.length : reader.get<uint32_t>();
      if (length == 0) return malformed("empty span");
      spans.push_back({group.region, offset, length});
    }
  }
  if (!reader.ok()) return malformed("short table");
  return spans;
}

}  // namespace kvferry::tcp
