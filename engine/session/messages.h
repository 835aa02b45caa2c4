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
proto::Region region_to_proto(const RegionInfo& region);

// Saturates.
uint32_t to_milliseconds(Duration span);

// At most 1 KiB of a text that may quote what a peer sent, cut between characters: it has to fit into a frame.
std::string short_text(std::string text);

// The code of a peer's answer; one that this build does not know is `internal`.
ErrorCode code_from_wire(uint32_t code);

}  // namespace kvferry
