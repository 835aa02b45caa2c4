#include "bootstrap/worker_info.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include "common/text.h"
#include "proto/bootstrap.pb.h"
#include "proto/parse.h"

namespace kvferry::bootstrap {
namespace {

std::string base64(std::string_view bytes) {
  std::string out((bytes.size() + 2) / 3 * 4 + 1, '\0');
  const int size =
      EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                      reinterpret_cast<const unsigned char*>(bytes.data()), static_cast<int>(bytes.size()));
  out.resize(static_cast<size_t>(size));
  return out;
}

bool keys_are_public(const WorkerInfo& worker, const RegionDescriptor& region) {
  return worker.auth == AuthMode::open && region.info.permissions != kPrivate;
}

std::string_view name_of(AuthMode mode) {
  return mode == AuthMode::open ? "open" : mode == AuthMode::psk ? "psk" : "mtls";
}

// "a,b" of the parts.
template <class Items, class Format>
std::string join(const Items& items, Format format) {
  std::string out;
  for (const auto& item : items) {
    if (!out.empty()) out += ',';
    out += format(item);
  }
  return out;
}

std::string fabric_json(const FabricValue& fabric) {
  return fmt::format(R"({{"name":{},"value":"{}"}})", json_quote(fabric.name), base64(fabric.value));
}

std::string group_json(const KvGroup& group) {
  return fmt::format(R"({{"block_tokens":{},"block_count":{},"heads_total":{},"heads_local":{},"head_size_k":{},)"
                     R"("head_size_v":{},"element_bits":{},"window_tokens":{},"sharing":"{}"}})",
                     group.block_tokens, group.block_count, group.heads_total, group.heads_local, group.head_size_k,
                     group.head_size_v, group.element_bits, group.window_tokens,
                     group.sharing == HeadSharing::split ? "split" : "replicated");
}

std::string layout_json(const std::optional<KvLayout>& layout) {
  if (!layout) return "null";
  return fmt::format(R"({{"encoded":"{}","layers_total":{},"layers":{},"groups":[{}]}})", base64(encode(*layout)),
                     layout->layers_total, layout->layers.size(), join(layout->groups, group_json));
}

std::string region_json(const WorkerInfo& worker, const RegionDescriptor& region) {
  const RegionInfo& info = region.info;
  std::string out =
      fmt::format(R"({{"id":"{:016x}","kind":"{}","read":{},"write":{},"base":{},"length":{},"device":{})", info.id,
                  to_string(info.kind), (info.permissions & kRemoteRead) != 0, (info.permissions & kRemoteWrite) != 0,
                  info.base, info.length, region.device);
  if (keys_are_public(worker, region)) out += R"(,"keys":[)" + join(region.keys, fabric_json) + "]";
  return out + "}";
}

void put(const FabricValue& from, proto::WorkerFabric& to) {
  to.set_name(from.name);
  to.set_address(from.value);
}

FabricValue get(const proto::WorkerFabric& from) {
  return {from.name(), from.address()};
}

void put(const ParallelRank& from, proto::WorkerRank& to) {
  to.set_tp_size(from.tp_size);
  to.set_tp_rank(from.tp_rank);
  to.set_pp_size(from.pp_size);
  to.set_pp_rank(from.pp_rank);
  to.set_dp_size(from.dp_size);
  to.set_dp_rank(from.dp_rank);
}

ParallelRank get(const proto::WorkerRank& from) {
  return {from.tp_size(), from.tp_rank(), from.pp_size(), from.pp_rank(), from.dp_size(), from.dp_rank()};
}

bool plausible(const ParallelRank& rank) {
  const auto fits = [](uint32_t size, uint32_t at) { return size >= 1 && size <= kMaxRanks && at < size; };
  return fits(rank.tp_size, rank.tp_rank) && fits(rank.pp_size, rank.pp_rank) && fits(rank.dp_size, rank.dp_rank);
}

Error malformed(std::string cause) {
  return {ErrorCode::protocol, "cannot read the description of a worker", std::move(cause), "", "bootstrap"};
}

Result<RegionDescriptor> get(const proto::WorkerRegion& from) {
  if (from.kind() >= kMemoryKinds) return malformed("a memory kind is unknown");
  RegionDescriptor region;
  region.info.id = from.id();
  region.info.kind = static_cast<MemoryKind>(from.kind());
  region.info.permissions = from.permissions() & kRemoteReadWrite;
  region.info.base = from.base();
  region.info.length = from.length();
  region.device = from.device();
  for (const auto& key : from.keys()) region.keys.push_back(get(key));
  return region;
}

}  // namespace

std::string to_json(const WorkerInfo& worker) {
  const ParallelRank& rank = worker.rank;
  return fmt::format(R"({{"engine_id":{},"instance_id":{},"incarnation":"{:016x}","address":{},"auth":"{}",)"
                     R"("parallel":{{"tp_size":{},"tp_rank":{},"pp_size":{},"pp_rank":{},"dp_size":{},"dp_rank":{}}},)"
                     R"("protocol":{{"min":{},"max":{}}},"layout":{},"fabrics":[{}],"regions":[{}]}})",
                     json_quote(worker.engine_id), json_quote(worker.instance_id), worker.incarnation,
                     json_quote(worker.address), name_of(worker.auth), rank.tp_size, rank.tp_rank, rank.pp_size,
                     rank.pp_rank, rank.dp_size, rank.dp_rank, worker.protocol_min, worker.protocol_max,
                     layout_json(worker.layout), join(worker.fabrics, fabric_json),
                     join(worker.regions, [&](const RegionDescriptor& region) { return region_json(worker, region); }));
}

std::string to_protobuf(const WorkerInfo& worker) {
  proto::Worker out;
  out.set_engine_id(worker.engine_id);
  out.set_instance_id(worker.instance_id);
  out.set_incarnation(worker.incarnation);
  out.set_address(worker.address);
  put(worker.rank, *out.mutable_rank());
  if (worker.layout) out.set_layout(encode(*worker.layout));
  for (const RegionDescriptor& region : worker.regions) {
    proto::WorkerRegion& to = *out.add_regions();
    to.set_id(region.info.id);
    to.set_kind(static_cast<uint32_t>(region.info.kind));
    to.set_permissions(region.info.permissions);
    to.set_base(region.info.base);
    to.set_length(region.info.length);
    to.set_device(region.device);
    if (!keys_are_public(worker, region)) continue;
    for (const FabricValue& key : region.keys) put(key, *to.add_keys());
  }
  for (const FabricValue& fabric : worker.fabrics) put(fabric, *out.add_fabrics());
  out.set_protocol_min(worker.protocol_min);
  out.set_protocol_max(worker.protocol_max);
  out.set_auth_mode(static_cast<uint32_t>(worker.auth));
  return out.SerializeAsString();
}

Result<WorkerInfo> parse_worker(std::string_view protobuf) {
  proto::Worker from;
  if (!proto::parse(from, protobuf)) return malformed("not protobuf");
  if (from.engine_id().empty() || from.address().empty()) return malformed("engine id or address is missing");
  if (from.auth_mode() > static_cast<uint32_t>(AuthMode::mtls)) return malformed("the mode is unknown");
  WorkerInfo worker;
  worker.engine_id = from.engine_id();
  worker.instance_id = from.instance_id();
  worker.incarnation = from.incarnation();
  worker.address = from.address();
  worker.rank = get(from.rank());
  if (!plausible(worker.rank)) return malformed("ranks and sizes do not fit");
  if (!from.layout().empty()) {
    KVF_ASSIGN_OR_RETURN(worker.layout, decode_layout(as_bytes(from.layout())));
  }
  for (const auto& region : from.regions()) {
    KVF_ASSIGN_OR_RETURN(RegionDescriptor descriptor, get(region));
    worker.regions.push_back(std::move(descriptor));
  }
  for (const auto& fabric : from.fabrics()) worker.fabrics.push_back(get(fabric));
  worker.protocol_min = from.protocol_min();
  worker.protocol_max = from.protocol_max();
  worker.auth = static_cast<AuthMode>(from.auth_mode());
  return worker;
}

}  // namespace kvferry::bootstrap
