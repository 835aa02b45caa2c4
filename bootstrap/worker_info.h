#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "engine/memory/region.h"
#include "engine/parcel/layout.h"

namespace kvferry::bootstrap {

// How engines know each other; the numbers are AuthMode's in proto/control.proto.
enum class AuthMode : uint8_t { open = 0, psk = 1, mtls = 2 };

// A fabric and what it needs to know, opaque here: an address, or a key of a region.
struct FabricValue {
  std::string name;
  std::string value;
  bool operator==(const FabricValue&) const = default;
};

struct RegionDescriptor {
  RegionInfo info;
  uint32_t device = 0;
  std::vector<FabricValue> keys;
};

// What a decoder needs to know of a prefiller's worker.
struct WorkerInfo {
  std::string engine_id;
  std::string instance_id;
  uint64_t incarnation = 0;
  std::string address;  // host:port of the engine
  ParallelRank rank;
  std::optional<KvLayout> layout;
  std::vector<RegionDescriptor> regions;
  std::vector<FabricValue> fabrics;
  uint32_t protocol_min = 0;
  uint32_t protocol_max = 0;
  AuthMode auth = AuthMode::open;
};

// Both forms leave out the keys of private regions always, and all keys unless `auth` is open: they belong into the
// authenticated session.
std::string to_json(const WorkerInfo& worker);
std::string to_protobuf(const WorkerInfo& worker);
// Error protocol: not what to_protobuf writes.
Result<WorkerInfo> parse_worker(std::string_view protobuf);

constexpr std::string_view kProtobufType = "application/x-protobuf";

}  // namespace kvferry::bootstrap
