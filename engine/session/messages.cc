#include "engine/session/messages.h"

#include <fmt/format.h>

#include <algorithm>

#include "common/bytes.h"

namespace kvferry {
namespace {

// I6
constexpr size_t kMaxKeyBytes = 1024;  // of one region and fabric
constexpr size_t kMaxKeys = 20;
constexpr size_t kMaxFabricName = 32;
constexpr size_t kMaxBootId = 128;

}  // namespace

HostIdentity host_from_proto(const proto::Host& host) {
  return {host.boot_id().size() <= kMaxBootId ? host.boot_id() : "", host.pid_namespace(), host.pid(), host.uid()};
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
  RegionInfo info{region.id(),          static_cast<MemoryKind>(region.kind()),
                  region.permissions(), region.word(),
                  region.base(),        region.length()};
  if (region.keys().empty()) return info;
  auto keys = std::make_shared<RegionKeys>();
  for (const proto::FabricOffer& key : region.keys()) {
    if (key.address().size() > kMaxKeyBytes || !is_fabric_name(key.name()) || keys->size() >= kMaxKeys)
      return Error{ErrorCode::protocol, "malformed key in the peer's region table"};
    keys->emplace_back(key.name(), key.address());
  }
  info.keys = std::move(keys);
  return info;
}

proto::Region region_to_proto(const RegionInfo& region, bool with_keys) {
  proto::Region out;
  out.set_id(region.id);
  out.set_kind(static_cast<uint32_t>(region.kind));
  out.set_permissions(region.permissions);
  out.set_word(region.word);
  out.set_base(region.base);
  out.set_length(region.length);
  if (with_keys && region.keys)
    for (const auto& [fabric, key] : *region.keys) {
      out.add_keys()->set_name(fabric);
      out.mutable_keys(out.keys_size() - 1)->set_address(key);
    }
  return out;
}

bool is_fabric_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxFabricName;
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

proto::AuthMode auth_to_proto(AuthMode mode) {
  return static_cast<proto::AuthMode>(mode);
}

Status check_auth_mode(proto::AuthMode theirs, AuthMode ours) {
  if (theirs == auth_to_proto(ours)) return {};
  const bool known = theirs >= proto::AUTH_OPEN && theirs <= proto::AUTH_MTLS;
  return Error{ErrorCode::permission_denied,
               fmt::format("the peer's auth mode is {}, this engine's is {}",
                           known ? to_string(static_cast<AuthMode>(theirs)) : "unknown here", to_string(ours))};
}

std::string plain_refusal(AuthMode ours) {
  proto::Frame frame;
  frame.mutable_refusal()->set_code(static_cast<uint32_t>(ErrorCode::permission_denied));
  std::string message = fmt::format("its auth mode is {}", to_string(ours));
  // The length stands first: it must not look like a record of TLS, whose types are 20 to 24.
  while (frame.mutable_refusal()->set_message(message), frame.ByteSizeLong() <= 24) message += ' ';
  std::string out;
  ByteWriter(out).put(static_cast<uint32_t>(frame.ByteSizeLong()));
  return out + frame.SerializeAsString();
}

ErrorCode code_from_wire(uint32_t code) {
  return code >= 1 && code <= static_cast<uint32_t>(ErrorCode::internal) ? static_cast<ErrorCode>(code)
                                                                         : ErrorCode::internal;
}

}  // namespace kvferry
