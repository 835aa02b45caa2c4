#include "engine/session/preface.h"

namespace kvferry {
namespace {

constexpr std::string_view kMagic = "KVFERRY1";

std::string common_part(char kind) {
  std::string out(kMagic);
  out += kind;
  out.resize(Preface::kBytes, '\0');
  return out;
}

}  // namespace

std::string encode_session_preface() {
  return common_part('S');
}

std::string encode_lane_preface(const LanePreface& lane) {
  KVF_CHECK(lane.token.size() == Preface::kTokenBytes);
  std::string out = common_part('L');
  ByteWriter writer(out);
  writer.put(lane.session_id);
  writer.put_bytes(lane.token);
  writer.put(lane.lane_id);
  writer.put(uint32_t{0});
  return out;
}

Result<Preface> decode_preface(ByteSpan bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.size() != Preface::kBytes || !text.starts_with(kMagic))
    return Error{ErrorCode::protocol, "a stranger: it does not speak kvferry's protocol"};
  const char kind = text[kMagic.size()];
  if (kind != 'S' && kind != 'L') return Error{ErrorCode::protocol, "connection of an unknown kind"};
  return Preface{kind == 'L'};
}

Result<LanePreface> decode_lane_preface(ByteSpan bytes) {
  ByteReader reader(bytes);
  LanePreface lane;
  lane.session_id = reader.get<uint64_t>();
  const ByteSpan token = reader.get_bytes(Preface::kTokenBytes);
  lane.token.assign(reinterpret_cast<const char*>(token.data()), token.size());
  lane.lane_id = reader.get<uint32_t>();
  reader.get<uint32_t>();
  if (!reader.ok()) return Error{ErrorCode::protocol, "short lane preface"};
  return lane;
}

}  // namespace kvferry
