#include <gtest/gtest.h>

#include <random>

#include "engine/fabric/tcp/wire.h"
#include "engine/io/address.h"
#include "engine/plan/coalesce.h"
#include "engine/run/transfer_task.h"
#include "engine/session/messages.h"
#include "engine/session/preface.h"

namespace kvferry {
namespace {

std::byte* at(uint64_t address) {
  return reinterpret_cast<std::byte*>(address);
}

// ---- plan

TEST(Coalesce, MergesOnlyWhatFollowsInBothMemories) {
  const std::vector<Pair> pairs = {{at(0), 1, 100, 10}, {at(10), 1, 110, 5}, {at(15), 1, 116, 5},
                                   {at(21), 1, 121, 5}, {at(26), 2, 126, 5}, {at(31), 2, 131, 5}};
  const auto merged = coalesce(pairs);
  ASSERT_EQ(merged.size(), 4u);
  EXPECT_EQ(merged[0].length, 15u);
  EXPECT_EQ(merged[1].length, 5u);
  EXPECT_EQ(merged[3].length, 10u);
  EXPECT_EQ(merged[3].region, 2u);
}

TEST(Coalesce, KeepsTheOrder) {
  const std::vector<Pair> pairs = {{at(50), 1, 50, 10}, {at(0), 1, 0, 10}, {at(10), 1, 10, 10}};
  const auto merged = coalesce(pairs);
  ASSERT_EQ(merged.size(), 2u);
  EXPECT_EQ(merged[0].local, at(50));
}

TEST(Chunker, CutsEveryByteOnceWithinItsLimits) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<Pair> pairs;
    uint64_t total = 0;
    for (uint64_t i = 0; i <= random() % 40; ++i) {
      pairs.push_back({at(i << 20), i, i, 1 + random() % 5000});
      total += pairs.back().length;
    }
    const uint64_t max_bytes = 1 + random() % 4000;
    const size_t max_pairs = 1 + random() % 6;
    Chunker chunker(pairs, max_bytes, max_pairs);
    std::vector<uint64_t> covered(pairs.size(), 0);
    uint64_t bytes = 0;
    size_t ended = 0;
    while (!chunker.done()) {
      const Chunk chunk = chunker.take();
      ASSERT_GT(chunk.bytes, 0u);
      ASSERT_LE(chunk.bytes, max_bytes);
      ASSERT_LE(chunk.count, max_pairs);
      size_t visited = 0;
      for_each_pair(pairs, chunk, [&](const Pair& pair) {
        const size_t index = pair.region;
        ASSERT_EQ(pair.local, at((uint64_t{index} << 20) + covered[index]));
        ASSERT_EQ(pair.offset, index + covered[index]);
        covered[index] += pair.length;
        bytes += pair.length;
        ++visited;
      });
      ASSERT_EQ(visited, chunk.count);
      ended += chunk.ended;
    }
    ASSERT_EQ(bytes, total);
    ASSERT_EQ(ended, pairs.size());
    for (size_t i = 0; i < pairs.size(); ++i) ASSERT_EQ(covered[i], pairs[i].length);
  }
}

// ---- the lane's wire

TEST(LaneWire, HeadersComeBackAsTheyWent) {
  tcp::Header header{tcp::FrameType::read_reply, 7, 300, UINT64_MAX - 1, tcp::kMaxPayload};
  std::string bytes;
  tcp::encode_header(header, bytes);
  ASSERT_EQ(bytes.size(), tcp::Header::kBytes);
  const auto back = tcp::decode_header(as_bytes(bytes));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->type, header.type);
  EXPECT_EQ(back->code, 7);
  EXPECT_EQ(back->table_bytes, 300u);
  EXPECT_EQ(back->op, header.op);
  EXPECT_EQ(back->payload_bytes, tcp::kMaxPayload);
}

TEST(LaneWire, HeadersOverTheLimitsAreRefused) {
  const auto refused = [](const tcp::Header& header) {
    std::string bytes;
    tcp::encode_header(header, bytes);
    return !tcp::decode_header(as_bytes(bytes)).ok();
  };
  EXPECT_TRUE(refused({tcp::FrameType::write, 0, 0, 1, tcp::kMaxPayload + 1}));
  EXPECT_TRUE(refused({tcp::FrameType::write, 0, tcp::kMaxTable + 1, 1, 0}));
  EXPECT_TRUE(refused({static_cast<tcp::FrameType>(0), 0, 0, 1, 0}));
  EXPECT_TRUE(refused({static_cast<tcp::FrameType>(200), 0, 0, 1, 0}));
  EXPECT_FALSE(refused({tcp::FrameType::write, 0, tcp::kMaxTable, 1, tcp::kMaxPayload}));
  EXPECT_FALSE(tcp::decode_header(as_bytes(std::string(32, 'x'))).ok());
}

TEST(LaneWire, TablesOfSpansComeBackAsTheyWent) {
  std::mt19937_64 random(11);
  for (int round = 0; round < 200; ++round) {
    std::vector<Pair> pairs;
    for (size_t i = 0; i <= random() % 60; ++i)
      pairs.push_back({at(0), 1 + random() % 2, random(), round % 2 == 0 ? 64 : 1 + random() % 3});
    std::string table;
    Chunk whole = Chunker(pairs, UINT64_MAX, SIZE_MAX).take();
    tcp::encode_spans(pairs, whole, table);
    const auto spans = tcp::decode_spans(as_bytes(table));
    ASSERT_TRUE(spans.ok());
    ASSERT_EQ(spans->size(), pairs.size());
    for (size_t i = 0; i < pairs.size(); ++i) {
      ASSERT_EQ((*spans)[i].region, pairs[i].region);
      ASSERT_EQ((*spans)[i].offset, pairs[i].offset);
      ASSERT_EQ((*spans)[i].length, pairs[i].length);
    }
    for (size_t cut = 1; cut < table.size(); cut += 7) {
      const auto part = tcp::decode_spans(as_bytes(table).first(cut));  // less, or an error; never more
      EXPECT_TRUE(!part.ok() || part->size() < pairs.size());
    }
  }
}

TEST(LaneWire, UnknownCodesAreInternal) {
  EXPECT_EQ(tcp::code_of({tcp::FrameType::read_reply, 3, 0, 0, 0}), ErrorCode::permission_denied);
  EXPECT_EQ(tcp::code_of({tcp::FrameType::read_reply, 60000, 0, 0, 0}), ErrorCode::internal);
}

// ---- prefaces, messages, addresses

TEST(Prefaces, ComeBackAsTheyWent) {
  const std::string session = encode_session_preface();
  ASSERT_EQ(session.size(), Preface::kBytes);
  EXPECT_FALSE(decode_preface(as_bytes(session))->is_lane);
  const std::string lane = encode_lane_preface({9, std::string(Preface::kTokenBytes, 't'), 4});
  ASSERT_EQ(lane.size(), Preface::kBytes + Preface::kLaneBytes);
  EXPECT_TRUE(decode_preface(as_bytes(lane).first(Preface::kBytes))->is_lane);
  const auto back = decode_lane_preface(as_bytes(lane).subspan(Preface::kBytes));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->session_id, 9u);
  EXPECT_EQ(back->token, std::string(Preface::kTokenBytes, 't'));
  EXPECT_EQ(back->lane_id, 4u);
}

TEST(Prefaces, OfStrangersAreRefused) {
  EXPECT_FALSE(decode_preface(as_bytes("GET / HTTP/1.1\r\n")).ok());
  EXPECT_FALSE(decode_preface(as_bytes(std::string("KVFERRY1Q\0\0\0\0\0\0\0", 16))).ok());
}

TEST(Messages, TextsAreCutBetweenCharacters) {
  EXPECT_EQ(short_text("as it is"), "as it is");
  std::string text(1023, 'a');
  const std::string cut = short_text(text.append("\xc3\xa9\xc3\xa9 and more"));
  EXPECT_EQ(cut, text.substr(0, 1023).append("..."));
  EXPECT_LT(short_text(std::string(100000, 'x')).size(), 1100u);
}

TEST(Messages, RegionsThatAreNoneAreRefused) {
  const auto refused = [](uint64_t id, uint32_t kind, uint64_t base, uint64_t length, uint32_t word) {
    proto::Region region;
    region.set_id(id);
    region.set_kind(kind);
    region.set_base(base);
    region.set_length(length);
    region.set_word(word);
    return !region_from_proto(region).ok();
  };
  EXPECT_FALSE(refused(1, 0, 4096, 10, 0));
  EXPECT_FALSE(refused(1, 0, 4096, 10, kNoWord));
  EXPECT_TRUE(refused(0, 0, 4096, 10, 0));
  EXPECT_TRUE(refused(1, 3, 4096, 10, 0));
  EXPECT_TRUE(refused(1, 0, 4096, 0, 0));
  EXPECT_TRUE(refused(1, 0, UINT64_MAX - 5, 10, 0));
  EXPECT_TRUE(refused(1, 0, 4096, 10, GateWords::kWords));
}

TEST(Addresses, AreParsedAndPrinted) {
  for (const char* text : {"10.0.0.7:7100", "127.0.0.1:0", "[::1]:7100"}) {
    const auto address = parse_address(text, false);
    ASSERT_TRUE(address.ok()) << text;
    EXPECT_EQ(address->to_string(), text);
    EXPECT_TRUE(to_socket_address(*address).ok());
  }
  for (const char* text : {"", ":", "7100", "10.0.0.7", "10.0.0.7:", "10.0.0.7:7x", "10.0.0.7:70000", "::1:7100",
                           ":7100", "host:7100", "10.0.0.7:-1"})
    EXPECT_FALSE(parse_address(text, false).ok()) << text;
  EXPECT_TRUE(parse_address("localhost:7100", true).ok());
  EXPECT_TRUE(parse_address("127.3.2.1:1", false)->is_loopback());
  EXPECT_FALSE(parse_address("10.0.0.7:1", false)->is_loopback());
}

// ---- the transfer's table of states

TEST(TransferStates, FollowTheTable) {
  using P = TransferPhase;
  using E = TransferEvent;
  const std::vector<std::tuple<P, E, P>> moves = {
      {P::waiting, E::session_ready, P::moving},   {P::moving, E::moved, P::notifying},
      {P::moving, E::moved_unannounced, P::ended}, {P::notifying, E::acknowledged, P::ended},
      {P::moving, E::give_up_write, P::fencing},   {P::fencing, E::fenced, P::ended},
      {P::moving, E::session_lost, P::waiting},    {P::waiting, E::give_up, P::ended},
      {P::moving, E::give_up, P::ended},           {P::notifying, E::give_up, P::ended},
      {P::fencing, E::give_up, P::ended}};
  for (const auto& [from, event, to] : moves) EXPECT_EQ(transition(from, event), to);
  // What a phase does not know leaves it as it is; nothing leaves the end.
  EXPECT_EQ(transition(P::fencing, E::moved), P::fencing);
  EXPECT_EQ(transition(P::waiting, E::acknowledged), P::waiting);
  EXPECT_EQ(transition(P::moving, E::fenced), P::moving);
  for (int event = 0; event <= static_cast<int>(E::fenced); ++event)
    EXPECT_EQ(transition(P::ended, static_cast<E>(event)), P::ended);
}

}  // namespace
}  // namespace kvferry
