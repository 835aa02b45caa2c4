#include <gtest/gtest.h>

#include "bootstrap/bootstrap.h"
#include "engine/session/preface.h"
#include "test/support/engines.h"
#include "test/support/eventually.h"
#include "test/support/free_port.h"
#include "test/support/http_call.h"
#include "test/support/raw_peer.h"

// Bootstrap servers over real engines and their parcels.

namespace kvferry::bootstrap {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using test::Answer;
using test::call;
using test::eventually;
using test::must;

constexpr uint32_t kBlocks = 64;
constexpr size_t kBlockBytes = size_t{1} << 20;
constexpr uint32_t kBlockTokens = 16;

// A cache of one layer, an engine over it, and its place in an instance of two ranks.
struct Rank {
  explicit Rank(const std::string& name, uint32_t tp_rank = 0, uint32_t tp_size = 1)
      : cache(nullptr, kBlocks * kBlockBytes) {
    EngineConfig config;
    config.engine_id = name;
    config.fabrics = {"tcp"};
    config.heartbeat = seconds(10);  // a hand-made reader sends none
    config.connect_timeout = seconds(30);
    engine = must(Engine::create(config));
    region = must(engine->register_memory(cache.base(), cache.size(), MemoryKind::host, kPrivate));
    KvGroup group;
    group.block_tokens = kBlockTokens;
    group.block_count = kBlocks;
    group.heads_total = tp_size;
    group.heads_local = 1;
    group.head_size_k = group.head_size_v = kBlockBytes / kBlockTokens / 2 / 2;
    group.element_bits = 16;
    layout.rank.tp_size = tp_size;
    layout.rank.tp_rank = tp_rank;
    layout.layers_total = 1;
    layout.groups = {group};
    layout.layers = {dense_layer(0, 0, group, PageShape::head_major, KvOrder::in_block, region.id(), 0)};
    parcels.emplace(*engine);
    EXPECT_TRUE(parcels->set_cache("inst", layout).ok());
    control.emplace(*engine);
  }

  void publish(const std::string& id) {
    ParcelSpec spec;
    spec.transfer_id = id;
    spec.tokens = kBlocks * kBlockTokens;
    spec.blocks = {all_blocks()};
    spec.fingerprint = "f";
    const Status status = parcels->publish(std::move(spec));
    ASSERT_TRUE(status.ok()) << status.error().to_string();
  }
  static BlockList all_blocks() {
    BlockList list;
    for (uint32_t i = 0; i < kBlocks; ++i) list.ids.push_back(i);
    return list;
  }
  // Why the parcel's blocks came back; nothing while they have not.
  std::optional<ReleaseReason> released() {
    const auto taken = parcels->take_released();
    return taken.empty() ? std::nullopt : std::optional(taken.front().why);
  }

  test::Buffer cache;
  std::unique_ptr<Engine> engine;
  Region region;
  KvLayout layout;
  std::optional<Parcels> parcels;
  std::optional<EngineParcels> control;
  std::unique_ptr<Server> server;
};

ServerSettings quick() {
  ServerSettings settings;
  settings.port = 0;
  settings.logger = make_null_logger();
  settings.worker_heartbeat = milliseconds(100);
  settings.worker_ttl = seconds(60);  // a machine that stands still makes no worker forgotten
  settings.release_limit = seconds(20);
  return settings;
}

void serve(Rank& rank, uint16_t base) {
  auto settings = must(settings_of_worker(quick(), "127.0.0.1", base, rank.layout.rank));
  rank.server = must(Server::create(std::move(settings), &*rank.control));
  rank.server->set_worker(worker_of(*rank.engine, "inst", rank.layout));
}

// A reader that has claimed a parcel and is in the middle for as long as the test wants.
class HeldClaim {
 public:
  HeldClaim(Engine& owner, const std::string& transfer_id) : connection_(test::RawConnection::dial(owner.address())) {
    EXPECT_TRUE(connection_.send(encode_session_preface() + test::RawConnection::encode(test::hello("reader"))));
    proto::Frame claim;
    claim.mutable_claim()->set_number(1);
    claim.mutable_claim()->set_transfer_id(transfer_id);
    claim.mutable_claim()->mutable_group()->set_instance_id("decoder");
    claim.mutable_claim()->mutable_group()->set_tp_size(1);
    claim.mutable_claim()->mutable_group()->set_pp_size(1);
    claim.mutable_claim()->set_fingerprint("f");
    claim.mutable_claim()->set_remaining_ms(60000);
    EXPECT_TRUE(connection_.send_frame(claim));
    const proto::Frame ticket = connection_.receive_frame(proto::Frame::kTicket);
    EXPECT_EQ(ticket.ticket().code(), 0u) << ticket.ticket().message();
    generation_ = ticket.ticket().generation();
  }
  // The verdict: nothing when it is valid.
  std::optional<ErrorCode> settle() {
    proto::Frame settle;
    settle.mutable_settle()->set_number(1);
    settle.mutable_settle()->set_generation(generation_);
    EXPECT_TRUE(connection_.send_frame(settle));
    const uint32_t code = connection_.receive_frame(proto::Frame::kVerdict).verdict().code();
    return code == 0 ? std::nullopt : std::optional(static_cast<ErrorCode>(code));
  }

 private:
  test::RawConnection connection_;
  uint64_t generation_ = 0;
};

TEST(BootstrapEngine, AWorkerTellsItsEnginesIdentityLayoutAndRegions) {
  Rank rank("worker");
  std::vector<std::byte> open_bytes(4096);
  const Region open = must(rank.engine->register_memory(open_bytes.data(), 4096, MemoryKind::host, kRemoteRead));
  serve(rank, test::free_ports(1));
  const auto client = must(BlockingClient::create({}));
  const auto info = must(client->worker("http://127.0.0.1:" + std::to_string(rank.server->port())));
  EXPECT_EQ(info->engine_id, "worker");
  EXPECT_EQ(info->instance_id, "inst");
  EXPECT_EQ(info->address, rank.engine->address());
  EXPECT_EQ(info->incarnation, rank.engine->self().incarnation);
  EXPECT_NE(info->incarnation, 0u);
  EXPECT_EQ(info->layout, rank.layout);
  ASSERT_EQ(info->regions.size(), 2u);
  EXPECT_EQ(info->regions[0].info.id, rank.region.id());
  EXPECT_TRUE(info->regions[0].keys.empty());  // private: only a ticket opens it
  EXPECT_EQ(info->regions[1].info.id, open.id());
  EXPECT_EQ(info->regions[1].info.length, 4096u);
  EXPECT_EQ(info->regions[1].keys.size(), 1u);
  // With authentication nobody learns a key here.
  WorkerInfo guarded = worker_of(*rank.engine, "inst", rank.layout);
  ASSERT_EQ(guarded.regions[1].keys.size(), 1u);
  guarded.auth = AuthMode::psk;
  rank.server->set_worker(guarded);
  EXPECT_EQ(call(rank.server->port(), "GET", "/v1/worker").body.find("keys"), std::string::npos);
}

TEST(BootstrapEngine, AParcelIsSeenAsItLivesAndEnds) {
  Rank rank("worker");
  serve(rank, test::free_ports(1));
  const uint16_t port = rank.server->port();
  EXPECT_EQ(call(port, "GET", "/v1/parcels/t1").status, 404);
  ASSERT_TRUE(rank.parcels->announce("t1").ok());
  EXPECT_NE(call(port, "GET", "/v1/parcels/t1").body.find(R"("state":"announced")"), std::string::npos);
  rank.publish("t1");
  EXPECT_NE(call(port, "GET", "/v1/parcels/t1").body.find(R"("state":"published")"), std::string::npos);
  HeldClaim reader(*rank.engine, "t1");
  const std::string seen = call(port, "GET", "/v1/parcels/t1").body;
  EXPECT_NE(seen.find(R"("state":"claimed")"), std::string::npos) << seen;
  EXPECT_NE(seen.find(R"("readers":1)"), std::string::npos) << seen;
  EXPECT_EQ(reader.settle(), std::nullopt);
  EXPECT_EQ(call(port, "GET", "/v1/parcels/t1").status, 404);
  EXPECT_EQ(rank.released(), ReleaseReason::settled);
}

TEST(BootstrapEngine, AnUnforcedDeleteWaitsForTheReaderInTheMiddle) {
  Rank rank("worker");
  serve(rank, test::free_ports(1));
  rank.publish("t1");
  HeldClaim reader(*rank.engine, "t1");
  for (const char* target : {"/v1/parcels/t1", "/v1/parcels/t1?scope=rank"}) {
    const Answer pending = call(rank.server->port(), "DELETE", target);
    EXPECT_EQ(pending.status, 202) << pending.body;
  }
  EXPECT_FALSE(rank.released());
  EXPECT_EQ(reader.settle(), std::nullopt);
  EXPECT_EQ(call(rank.server->port(), "DELETE", "/v1/parcels/t1").status, 200);
  EXPECT_TRUE(rank.released());
}

TEST(BootstrapEngine, AForcedDeleteMakesTheReaderInTheMiddleStale) {
  Rank rank("worker");
  serve(rank, test::free_ports(1));
  rank.publish("t1");
  HeldClaim reader(*rank.engine, "t1");
  const Answer answer = call(rank.server->port(), "DELETE", "/v1/parcels/t1?force=1");
  EXPECT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(rank.released(), ReleaseReason::released);
  EXPECT_EQ(reader.settle(), ErrorCode::stale);
  EXPECT_EQ(call(rank.server->port(), "DELETE", "/v1/parcels/t1?force=1").status, 200);  // again: the same
}

TEST(BootstrapEngine, ADeleteBeforePublishRefusesTheLaterOne) {
  Rank rank("worker");
  serve(rank, test::free_ports(1));
  EXPECT_EQ(call(rank.server->port(), "DELETE", "/v1/parcels/t1?scope=rank").body, R"({"status":"unknown"})");
  EXPECT_EQ(call(rank.server->port(), "DELETE", "/v1/parcels/t1?scope=rank").body, R"({"status":"released"})");
  rank.publish("t1");
  EXPECT_EQ(rank.released(), ReleaseReason::aborted);
}

TEST(BootstrapEngine, ADeleteAtTheBaseReachesEveryRankAndNamesThoseThatWait) {
  Rank first("rank0", 0, 2), second("rank1", 1, 2);
  const uint16_t base = test::free_ports(2);
  serve(first, base);
  serve(second, base);
  ASSERT_TRUE(eventually([&] {
    const std::string all = call(base, "GET", "/v1/workers").body;
    return all.find(R"("tp_rank":0)") != std::string::npos && all.find(R"("tp_rank":1)") != std::string::npos;
  }));
  EXPECT_EQ(second.server->port(), base + 1);

  for (Rank* rank : {&first, &second}) rank->publish("t1");
  HeldClaim reader(*second.engine, "t1");
  const Answer some = call(base, "DELETE", "/v1/parcels/t1");
  EXPECT_EQ(some.status, 202) << some.body;
  EXPECT_NE(some.body.find(R"("waiting":[{"engine_id":"inst","dp_rank":0,"tp_rank":1,"pp_rank":0}])"),
            std::string::npos)
      << some.body;
  EXPECT_EQ(first.released(), ReleaseReason::released);
  EXPECT_FALSE(second.released());

  const Answer all = call(base, "DELETE", "/v1/parcels/t1?force=1");
  EXPECT_EQ(all.status, 200) << all.body;
  EXPECT_NE(all.body.find(R"("ranks":2)"), std::string::npos) << all.body;
  EXPECT_EQ(second.released(), ReleaseReason::released);
  EXPECT_EQ(reader.settle(), ErrorCode::stale);
}

// A real reader over tcp, its parcel taken away while the bytes flow. It may be through before the DELETE comes; then
// it holds what was published, and the next try is made.
TEST(BootstrapEngine, ARealReaderIsRefusedWhenItsParcelIsTakenAway) {
  Rank owner("owner"), reader("reader");
  owner.cache.store(test::pattern(owner.cache.size(), 1));
  serve(owner, test::free_ports(1));
  const PeerRef peer = must(reader.engine->peer(owner.engine->address()));
  bool refused = false;
  for (int i = 0; i < 50 && !refused; ++i) {
    const std::string id = "t" + std::to_string(i);
    owner.publish(id);
    ParcelReadRequest request;
    request.transfer_id = id;
    request.owners = {peer};
    request.group_instance_id = "decoder";
    request.fingerprint = "f";
    request.end_token = kBlocks * kBlockTokens;
    request.blocks = {Rank::all_blocks()};
    const ParcelReading reading = must(reader.parcels->read(std::move(request)));
    ASSERT_TRUE(eventually([&] {
      const auto status = owner.parcels->status(id);
      return reading.done() || (status && status->readers > 0);
    }));
    EXPECT_EQ(call(owner.server->port(), "DELETE", "/v1/parcels/" + id + "?force=1").status, 200);
    ASSERT_TRUE(eventually([&] { return owner.released().has_value(); }));
    const ParcelReadOutcome outcome = reading.wait();
    // `gone`: between its ticket and its fetch.
    refused = outcome.state == ReadState::stale || outcome.state == ReadState::gone;
    if (!refused) {
      ASSERT_EQ(outcome.state, ReadState::accepted) << outcome.status.error().to_string();
      ASSERT_TRUE(reader.cache.holds(owner.cache.load()));
    }
  }
  EXPECT_TRUE(refused);
}

TEST(BootstrapEngine, OnlyTheFirstRankKeepsTheDirectoryAndOtherStagesTakeAnyPort) {
  const auto settings = [](uint32_t dp, uint32_t pp, uint32_t tp) {
    ParallelRank rank;
    rank.tp_size = 4;
    rank.pp_size = 2;
    rank.dp_size = 2;
    rank.dp_rank = dp;
    rank.pp_rank = pp;
    rank.tp_rank = tp;
    return must(settings_of_worker({}, "10.0.0.1", 9000, rank));
  };
  EXPECT_EQ(settings(0, 0, 0).port, 9000);
  EXPECT_TRUE(settings(0, 0, 0).keeps_directory);
  EXPECT_EQ(settings(1, 0, 2).port, 9006);
  EXPECT_FALSE(settings(1, 0, 2).keeps_directory);
  EXPECT_EQ(settings(0, 1, 0).port, 0);
  EXPECT_FALSE(settings(0, 1, 0).keeps_directory);
  EXPECT_EQ(settings(1, 1, 3).base_url, "http://10.0.0.1:9000");
}

}  // namespace
}  // namespace kvferry::bootstrap
