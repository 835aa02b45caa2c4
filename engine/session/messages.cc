#include "engine/session/messages.h"

#include <algorithm>

namespace kvferry {

HostIdentity host_from_proto(const proto::Host& host) {
  return {host.boot_id(), host.pid_namespace(), host.pid(), host.uid()};
}

proto::Host host_to_proto(const HostIdentity& host) {
  proto::Host out;
  out.set_boot_id(host.boot_id);
  out.set_pid_namespace(host.pid_namespace);
  out.set_pid(host.pid);
  out.set_uid(host.uid);
  return out;
}

Result<RegionInfo> region_from_proto(const proto::Region& region) {
  const bool known_word = region.word() == kNoWord || region.word() < GateWords::kWords;
  if (region.id() == 0 || region.kind() >= kMemoryKinds || !known_word || region.length() == 0 ||
      region.base() + region.length() < region.base())
    return Error{ErrorCode::protocol, "malformed region in the peer's table"};
  return RegionInfo{region.id(),          static_cast<MemoryKind>(region.kind()),
                    region.permissions(), region.word(),
                    region.base(),        region.length()};
}

proto::Region region_to_proto(const RegionInfo& region) {
  proto::Region out;
  out.set_id(region.id);
  out.set_kind(static_cast<uint32_t>(region.kind));
  out.set_permissions(region.permissions);
  out.set_word(region.word);
  out.set_base(region.base);
  out.set_length(region.length);
  return out;
}

uint32_t to_milliseconds(Duration span) {
  const auto count = std::chrono::duration_cast<std::chrono::milliseconds>(span).count();
  return static_cast<uint32_t>(std::clamp<int64_t>(count, 0, UINT32_MAX));
}

std::string short_text(std::string text) {
  size_t length = 1024;
  if (text.size() <= length) return text;
  while (length > 0 && (static_cast<unsigned char>(text[length]) & 0xc0) == 0x80) --length;
  text.resize(length);
  return text + "...";
}

ErrorCode code_from_wire(uint32_t code) {
  return code >= 1 && code <= static_cast<uint32_t>(ErrorCode::internal) ? static_cast<ErrorCode>(code)
                                                                         : ErrorCode::internal;
}

}  // namespace kvferry
