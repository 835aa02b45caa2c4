#pragma once

#include "engine/memory/region.h"
#include "engine/session/identity.h"
#include "proto/control.pb.h"

namespace kvferry {

// Between the wire's messages and the engine's own types.

constexpr size_t kMaxEngineId = 256;

HostIdentity host_from_proto(const proto::Host& host);
proto::Host host_to_proto(const HostIdentity& host);

// Refuses kinds, permissions and words that this build does not know, and ranges that wrap around.
Result<RegionInfo> region_from_proto(const proto::Region& region);
// `with_keys`: for whoever may use the region.
proto::Region region_to_proto(const RegionInfo& region, bool with_keys);

// Saturates.
uint32_t to_milliseconds(Duration span);

// At most 1 KiB of a text that may quote what a peer sent, cut between characters: it has to fit into a frame.
std::string short_text(std::string text);
// As engines name fabrics to each other: no more is kept of a peer's words (I6).
bool is_fabric_name(std::string_view name);

proto::AuthMode auth_to_proto(AuthMode mode);
// ok when a peer of that mode may talk to an engine of `ours`.
Status check_auth_mode(proto::AuthMode theirs, AuthMode ours);

// A whole session frame, said in the clear to a connection of another auth mode: who reads it as a session is told why,
// and who expects TLS sees at its first byte that this is none.
std::string plain_refusal(AuthMode ours);

// The code of a peer's answer; one that this build does not know is `internal`.
ErrorCode code_from_wire(uint32_t code);

}  // namespace kvferry
