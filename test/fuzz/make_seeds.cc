// Usage: kvf-fuzz-seeds DIRECTORY
// Writes the seeds that no one writes by hand (layouts, selections, frames and lanes of a whole conversation) into the
// corpora below DIRECTORY, which is test/fuzz/corpus. To be run again when a format changes.
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "engine/fabric/tcp/wire.h"
#include "engine/parcel/reshard.h"
#include "engine/session/preface.h"
#include "proto/control.pb.h"
#include "test/fuzz/small_cache.h"

namespace {

using namespace kvferry;

std::string record(uint8_t what, const std::string& bytes) {
  std::string out(1, static_cast<char>(what));
  ByteWriter(out).put(static_cast<uint16_t>(bytes.size()));
  return out + bytes;
}

std::string record(uint8_t what, const proto::Frame& frame) {
  return record(what, frame.SerializeAsString());
}

std::string lane_frame(tcp::FrameType type, uint64_t op, const std::string& table, size_t payload,
                       ErrorCode code = {}) {
  tcp::Header header;
  header.type = type;
  header.op = op;
  header.code = static_cast<uint16_t>(code);
  header.table_bytes = static_cast<uint32_t>(table.size());
  header.payload_bytes = payload;
  std::string out;
  tcp::encode_header(header, out);
  return out + table + std::string(payload, 'p');
}

Selection all_of_the_cache() {
  SelectionPart part;
  part.head_count = 2;
  part.end_token = 15;
  part.chunk_tokens = 4;
  part.layers = {LayerRun{0, 2, 1}};
  return {{part}};
}

proto::Claim claim(uint64_t number, const std::string& id, const std::string& selection) {
  proto::Claim claim;
  claim.set_number(number);
  claim.set_transfer_id(id);
  claim.set_expected_instance_id("instance");
  claim.mutable_group()->set_instance_id("group");
  claim.mutable_group()->set_tp_size(1);
  claim.mutable_group()->set_pp_size(1);
  claim.set_fingerprint("fp");
  claim.set_remaining_ms(5000);
  claim.set_selection(selection);
  return claim;
}

proto::Frame settle(uint64_t number, bool more, uint32_t code) {
  proto::Frame frame;
  frame.mutable_settle()->set_number(number);
  frame.mutable_settle()->set_generation(1);
  frame.mutable_settle()->set_more(more);
  frame.mutable_settle()->set_code(code);
  frame.mutable_settle()->set_selection(encode(all_of_the_cache()));
  return frame;
}

std::string owner_conversation() {
  const std::string selection = encode(all_of_the_cache());
  proto::Frame asks, releases, extends;
  *asks.mutable_claim() = claim(1, "published", "");
  releases.mutable_release()->set_transfer_id("digested");
  releases.mutable_release()->set_force(true);
  extends.mutable_extend()->set_transfer_id("published");
  return record(0, asks) + record(0, extends) + record(0, settle(1, false, 0)) +
         record(2, claim(2, "digested", selection).SerializeAsString()) + record(0, settle(2, true, 0)) +
         record(2, claim(3, "announced", selection).SerializeAsString()) + record(5, std::string()) +
         record(4, std::string(3, 's')) + record(1, releases) + record(7, std::string()) +
         record(4, std::string(70, 's'));
}

std::string owner_quarrel() {
  proto::Frame first, second;
  *first.mutable_claim() = claim(1, "announced", "");
  *second.mutable_claim() = claim(1, "published", "");
  second.mutable_claim()->mutable_group()->set_instance_id("others");
  return record(0, first) + record(1, second) + record(0, second) + record(6, "announced") +
         record(1, settle(1, false, 3)) + record(7, "x") + record(4, std::string(10, 's')) +
         record(3, lane_frame(tcp::FrameType::fetch, 9, "junk", 0));
}

// What an answer would quote does not fit a frame with it, and a group of 16 million ranks does not fit memory.
std::string owner_hostile_claims() {
  proto::Frame names, group;
  *names.mutable_claim() = claim(1, "published", "");
  names.mutable_claim()->set_expected_instance_id(std::string(65000, 'i'));
  *group.mutable_claim() = claim(2, "published", "");
  group.mutable_claim()->mutable_group()->set_tp_size(4096);
  group.mutable_claim()->mutable_group()->set_pp_size(4096);
  return record(0, names) + record(0, group) + record(2, group.claim().SerializeAsString());
}

proto::Frame ticket(uint64_t number) {
  const KvLayout layout = test::small_cache(7);
  proto::Frame frame;
  proto::Ticket& ticket = *frame.mutable_ticket();
  ticket.set_number(number);
  ticket.set_generation(11);
  ticket.set_word(1);
  ticket.set_layout(encode(layout));
  ticket.set_layout_hash(99);
  ticket.set_tokens(15);
  ticket.set_lease_ms(60000);
  proto::BlockGroup& group = *ticket.add_groups();
  for (const uint32_t id : {3u, 1u, 4u, 5u}) group.add_block_ids(id);
  proto::Region& region = *ticket.add_regions();
  region.set_id(7);
  region.set_base(4096);
  region.set_length(8192);
  return frame;
}

std::string peer_transfers() {
  std::string out = record(6, "") + record(7, "") + record(6, "");
  for (uint8_t lane = 1; lane <= 2; ++lane)
    for (uint64_t op = 0; op < 4; ++op) {
      out += record(lane, lane_frame(tcp::FrameType::read_reply, op, "", 128));
      out += record(lane, lane_frame(tcp::FrameType::write_reply, op, "", 0));
    }
  proto::Frame fenced;
  fenced.mutable_fenced()->set_number(1);
  return out + record(7, "") + record(9, "") + record(0, fenced) + record(5, std::string(4, 's')) +
         record(1, lane_frame(tcp::FrameType::read_reply, 1, "no such region", 0, ErrorCode::not_found));
}

std::string peer_parcels() {
  proto::Frame verdict;
  verdict.mutable_verdict()->set_number(1);
  proto::Verdict trailer;
  trailer.set_number(1);
  proto::Ticket head = ticket(2).ticket();
  head.clear_groups();
  std::string out = record(8, "") + record(0, ticket(1));
  for (uint8_t lane = 1; lane <= 2; ++lane)
    for (uint64_t op = 1; op <= 2; ++op) {
      if (op == 2) out += record(8, "x");
      out += record(lane, lane_frame(tcp::FrameType::fetch_head, op, head.SerializeAsString(), 0));
      out += record(lane, lane_frame(tcp::FrameType::fetch_data, op, "", 1000));
      out += record(lane, lane_frame(tcp::FrameType::fetch_data, op, "", 920));
      trailer.set_number(op);
      out += record(lane, lane_frame(tcp::FrameType::fetch_end, op, trailer.SerializeAsString(), 0));
    }
  return out + record(0, verdict);
}

std::string with_first_byte(char what, const std::string& bytes) {
  return std::string(1, what) + bytes;
}

std::string layout_and_selection(const KvLayout& layout, const Selection& selection) {
  const std::string bytes = encode(layout);
  std::string out(1, 2);
  ByteWriter(out).put(static_cast<uint16_t>(bytes.size()));
  return out + bytes + encode(selection);
}

void write(const std::filesystem::path& path, const std::string& bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: kvf-fuzz-seeds DIRECTORY\n", stderr);
    return 2;
  }
  const std::filesystem::path corpus = argv[1];
  KvLayout named = test::small_cache(7);
  for (KvLayer& layer : named.layers) layer.name = "model.layers." + std::to_string(layer.index);
  Selection by_layer = all_of_the_cache();
  by_layer.parts.front().first_token = 4;
  by_layer.parts.front().layers = {LayerRun{1, 1, 1}};
  write(corpus / "parcel_wire/layout", with_first_byte(0, encode(named)));
  write(corpus / "parcel_wire/selection", with_first_byte(1, encode(all_of_the_cache())));
  write(corpus / "parcel_wire/all", layout_and_selection(named, all_of_the_cache()));
  write(corpus / "parcel_wire/layer", layout_and_selection(named, by_layer));
  write(corpus / "parcel_owner/conversation", owner_conversation());
  write(corpus / "parcel_owner/quarrel", owner_quarrel());
  write(corpus / "parcel_owner/hostile_claims", owner_hostile_claims());
  write(corpus / "engine_peer/transfers", peer_transfers());
  write(corpus / "engine_peer/parcels", peer_parcels());
  LanePreface lane;
  lane.session_id = 3;
  lane.token = std::string(Preface::kTokenBytes, 't');
  write(corpus / "engine_acceptor/session", encode_session_preface());
  write(corpus / "engine_acceptor/lane", encode_lane_preface(lane));
  return 0;
}
