// Tables of spans and lane headers: what is decoded keeps its limits.
#include "engine/fabric/tcp/wire.h"
#include "engine/session/preface.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvferry;
  const ByteSpan bytes(reinterpret_cast<const std::byte*>(data), size);
  if (auto spans = tcp::decode_spans(bytes)) {
    KVF_CHECK(spans->size() <= tcp::kMaxSpans);
    for (const tcp::RemoteSpan& span : *spans) KVF_CHECK(span.length > 0);
  }
  if (size >= tcp::Header::kBytes) {
    auto header = tcp::decode_header(bytes.first(tcp::Header::kBytes));
    if (header) {
      KVF_CHECK(header->table_bytes <= tcp::kMaxTable);
      std::string again;
      tcp::encode_header(*header, again);
      auto twice = tcp::decode_header(as_bytes(again));
      KVF_CHECK(twice.ok() && twice->op == header->op && twice->payload_bytes == header->payload_bytes);
    }
  }
  if (size >= Preface::kBytes) static_cast<void>(decode_preface(bytes.first(Preface::kBytes)));
  if (size >= Preface::kLaneBytes) {
    auto lane = decode_lane_preface(bytes.first(Preface::kLaneBytes));
    KVF_CHECK(lane.ok() && lane->token.size() == Preface::kTokenBytes);
  }
  return 0;
}
