#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "bootstrap/bodies.h"
#include "bootstrap/config.h"
#include "bootstrap/paths.h"
#include "bootstrap/ports.h"
#include "bootstrap/worker_info.h"

namespace kvferry::bootstrap {
namespace {

using Variables = std::map<std::string, std::string>;

TEST(BootstrapBodies, ReadsVllmsRegistrationAndSkipsWhatItDoesNotKnow) {
  const auto read = parse_registration(
      R"({"engine_id":"e","dp_rank":1,"tp_rank":2,"pp_rank":3,"addr":"tcp://h:1","pp_size":4,"names":["x"]})");
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->engine_id, "e");
  EXPECT_EQ(read->rank, (Rank{1, 2, 3}));
  EXPECT_EQ(read->addr, "tcp://h:1");
  EXPECT_FALSE(read->ttl || read->age);
  EXPECT_TRUE(read->http.empty());
}

TEST(BootstrapBodies, ARegistrationComesBackAsItWas) {
  Registration what{"e\"\\\n", {1, 2, 3}, "tcp://h:1", "http://h:2", 0xfedcba9876543210, {}, {}};
  what.age = std::chrono::milliseconds(1500);
  what.ttl = std::chrono::seconds(5);
  const auto read = parse_registration(format_registration(what));
  ASSERT_TRUE(read.ok()) << read.error().to_string();
  EXPECT_EQ(read->engine_id, what.engine_id);
  EXPECT_EQ(read->rank, what.rank);
  EXPECT_EQ(read->http, what.http);
  EXPECT_EQ(read->incarnation, what.incarnation);
  EXPECT_EQ(read->age, what.age);
  EXPECT_EQ(read->ttl, what.ttl);
}

TEST(BootstrapBodies, WrongOnesAreRefusedByName) {
  const std::string good = R"("engine_id":"e","dp_rank":0,"tp_rank":0,"pp_rank":0,"addr":"tcp://h:1")";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "JSON"},
      {"[]", "object"},
      {"nonsense", "JSON"},
      {R"({"engine_id":"e")", "JSON"},
      {R"({"dp_rank":0,"tp_rank":0,"pp_rank":0,"addr":"a"})", "engine_id"},
      {R"({"engine_id":5,"dp_rank":0,"tp_rank":0,"pp_rank":0,"addr":"a"})", "engine_id"},
      {R"({"engine_id":"e","dp_rank":"0","tp_rank":0,"pp_rank":0,"addr":"a"})", "dp_rank"},
      {R"({"engine_id":"e","dp_rank":0,"tp_rank":-1,"pp_rank":0,"addr":"a"})", "tp_rank"},
      {R"({"engine_id":"e","dp_rank":0,"tp_rank":0,"pp_rank":4294967296,"addr":"a"})", "pp_rank"},
      {R"({"engine_id":"e","dp_rank":0,"tp_rank":0,"pp_rank":1e300,"addr":"a"})", "pp_rank"},
      {R"({"engine_id":"e","dp_rank":0,"tp_rank":0,"pp_rank":0,"addr":[]})", "addr"},
      {"{" + good + R"(,"incarnation":7})", "incarnation"},
      {"{" + good + R"(,"incarnation":"xyz"})", "incarnation"},
      {"{" + good + R"(,"incarnation":"00000000000000001"})", "incarnation"},
      {"{" + good + R"(,"ttl_ms":-1})", "ttl_ms"},
      {"{" + good + R"(,"age_ms":18446744073709551615})", "age_ms"},
      {"{" + good + R"(,"http":5})", "http"},
      {std::string(5000, '['), "JSON"},
  };
  for (const auto& [body, name] : cases) {
    const auto read = parse_registration(body);
    ASSERT_FALSE(read.ok()) << body;
    EXPECT_EQ(read.error().code, ErrorCode::invalid_argument);
    EXPECT_NE(read.error().message.find(name), std::string::npos) << body << " -> " << read.error().message;
  }
  EXPECT_TRUE(parse_registration("{" + good + "}").ok());
}

TEST(BootstrapBodies, ARemovalNamesAllRanksOrNone) {
  EXPECT_FALSE(parse_removal(R"({"engine_id":"e"})")->rank);
  EXPECT_EQ(parse_removal(R"({"engine_id":"e","dp_rank":1,"tp_rank":2,"pp_rank":3})")->rank, (Rank{1, 2, 3}));
  EXPECT_FALSE(parse_removal(R"({"engine_id":"e","dp_rank":1})").ok());
}

TEST(BootstrapBodies, ListsOfWorkersComeBackAsTheyWere) {
  const Registration one{"e", {0, 0, 0}, "tcp://h:1", "http://h:2", 7, {}, {}};
  const Registration two{"f", {1, 0, 0}, "tcp://h:3", "", 0, {}, {}};
  const auto read = parse_workers(format_workers({&one, &two}));
  ASSERT_TRUE(read.ok());
  ASSERT_EQ(read->size(), 2U);
  EXPECT_EQ(read->at(0).incarnation, 7U);
  EXPECT_EQ(read->at(1).addr, "tcp://h:3");
  EXPECT_EQ(parse_workers(format_workers({}))->size(), 0U);
}

TEST(BootstrapBodies, ReadsWhatTheDirectoryAnswersToQuery) {
  Directory directory({});
  for (const Rank rank : {Rank{0, 0, 0}, Rank{0, 0, 1}, Rank{0, 1, 0}, Rank{2, 0, 0}}) {
    const Registration worker{
        "e" + std::to_string(rank.dp), rank, "tcp://h:" + std::to_string(1 + rank.tp), "", 0, {}, {}};
    ASSERT_TRUE(directory.add("", worker, TimePoint()).ok());
  }
  const auto read = parse_query(directory.query(""));
  ASSERT_TRUE(read.ok());
  ASSERT_EQ(read->size(), 4U);
  EXPECT_EQ(read->at(2).rank, (Rank{0, 1, 0}));
  EXPECT_EQ(read->at(2).addr, "tcp://h:2");
  EXPECT_EQ(read->at(3).engine_id, "e2");
  EXPECT_FALSE(parse_query(R"({"x":{"engine_id":"e","worker_addr":{}}})").ok());
  EXPECT_FALSE(parse_query(R"({"0":{"engine_id":"e"}})").ok());
}

TEST(BootstrapPaths, FindThePageAndTheNamespace) {
  const std::vector<std::tuple<std::string, Endpoint, std::string, std::string>> cases = {
      {"/register", Endpoint::registration, "", ""},
      {"/query", Endpoint::query, "", ""},
      {"/a/query", Endpoint::query, "a", ""},
      {"/a/b.c/d_e/f-9/heartbeat", Endpoint::heartbeat, "a/b.c/d_e/f-9", ""},
      {"/v1/worker", Endpoint::worker, "", ""},
      {"/p/v1/workers", Endpoint::workers, "p", ""},
      {"/v1/parcels/xfer-1", Endpoint::parcel, "", "xfer-1"},
      {"/p/v1/parcels/a%2Fb%20c", Endpoint::parcel, "p", "a/b c"},
      {"/v1/parcels/query", Endpoint::parcel, "", "query"},
      {"/health", Endpoint::health, "", ""},
      {"/metrics", Endpoint::metrics, "", ""},
  };
  for (const auto& [text, endpoint, space, id] : cases) {
    const auto path = parse_path(text);
    ASSERT_TRUE(path) << text;
    EXPECT_EQ(path->endpoint, endpoint) << text;
    EXPECT_EQ(path->space, space) << text;
    EXPECT_EQ(path->id, id) << text;
  }
  for (const std::string& text :
       {std::string(), std::string("*"), std::string("/"), std::string("/nothing"), std::string("//query"),
        std::string("/../query"), std::string("/a/b/c/d/e/query"), std::string("/v1/parcels/"),
        std::string("/v1/parcels/%0a"), std::string("/v1/parcels/%4"), std::string("/query/"),
        "/" + std::string(65, 'n') + "/query", "/v1/parcels/" + std::string(257, 'x')}) {
    EXPECT_FALSE(parse_path(text)) << text;
  }
}

TEST(BootstrapPaths, AnyIdSurvivesThePath) {
  std::string id;
  for (int c = 0x20; c < 0x7f; ++c) id.push_back(static_cast<char>(c));
  EXPECT_EQ(parse_path("/v1/parcels/" + percent_encode(id))->id, id);
  // An id that is too long makes no namespace of the words before another that is not.
  EXPECT_FALSE(parse_path("/ns/v1/parcels/" + std::string(50, 'a') + "/v1/parcels/" + std::string(240, 'y')));
}

TEST(BootstrapPorts, FollowTheRuleOfTheBasePort) {
  EXPECT_EQ(*port_of_worker(8998, 0, 1, 0), 8998);
  EXPECT_EQ(*port_of_worker(8998, 0, 4, 3), 9001);
  EXPECT_EQ(*port_of_worker(8998, 2, 4, 1), 9007);
  EXPECT_FALSE(port_of_worker(8998, 0, 4, 4).ok());
  EXPECT_FALSE(port_of_worker(8998, 20000, 4, 0).ok());
  EXPECT_FALSE(port_of_worker(8998, 0xffffffff, 0xffffffff, 0).ok());
  EXPECT_FALSE(port_of_worker(0, 0, 1, 0).ok());
}

class BootstrapPortHolder : public testing::Test {
 protected:
  BootstrapPortHolder() { std::filesystem::create_directories(proc_ / "net"); }
  ~BootstrapPortHolder() override { std::filesystem::remove_all(proc_); }
  void write(const std::filesystem::path& name, const std::string& text) {
    std::filesystem::create_directories((proc_ / name).parent_path());
    std::ofstream(proc_ / name, std::ios::binary) << text;
  }
  const std::filesystem::path proc_ = testing::TempDir() + "kvferry_proc_" + std::to_string(::getpid());
};

TEST_F(BootstrapPortHolder, IsNamedByPidAndCommand) {
  const std::string head =
      "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
  write("net/tcp",
        head +
            "   0: 0100007F:2326 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 111 1\n"
            "   1: 0100007F:2326 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1\n");
  EXPECT_EQ(port_holder(9000, proc_), "nobody listens on it");
  EXPECT_NE(port_holder(8998, proc_).find("cannot see"), std::string::npos);
  write("42/cmdline", std::string("python3\0-m\0vllm\0", 16));
  write("41/cmdline", "other");
  std::filesystem::create_directories(proc_ / "42/fd");
  std::filesystem::create_directories(proc_ / "41/fd");
  std::filesystem::create_symlink("socket:[111]", proc_ / "41/fd/3");
  std::filesystem::create_symlink("socket:[222]", proc_ / "42/fd/7");
  EXPECT_EQ(port_holder(8998, proc_), "held by pid 42 (python3 -m vllm)");
}

WorkerInfo some_worker() {
  WorkerInfo worker;
  worker.engine_id = "inst/0.0.1";
  worker.instance_id = "inst";
  worker.incarnation = 0xabc;
  worker.address = "10.0.0.2:7100";
  worker.rank = {2, 1, 1, 0, 1, 0};
  const KvGroup group{16, 64, 8, 4, 32, 32, 16, 0, HeadSharing::split};
  KvLayout layout;
  layout.rank = worker.rank;
  layout.layers_total = 1;
  layout.groups = {group};
  layout.layers = {dense_layer(0, 0, group, PageShape::head_major, KvOrder::in_block, 5, 0)};
  worker.layout = layout;
  RegionDescriptor open{
      {5, MemoryKind::cuda, kRemoteRead, kNoWord, 0x7f0000000000, 1 << 20, {}}, 3, {{"ucx", "k\x01y"}}};
  RegionDescriptor closed{{6, MemoryKind::host, kPrivate, kNoWord, 0x1000, 4096, {}}, 0, {{"ucx", "secret"}}};
  worker.regions = {open, closed};
  worker.fabrics = {{"ucx", "address"}};
  worker.protocol_min = worker.protocol_max = 1;
  return worker;
}

TEST(BootstrapWorker, ComesBackFromProtobufAsItWas) {
  const WorkerInfo worker = some_worker();
  const auto read = parse_worker(to_protobuf(worker));
  ASSERT_TRUE(read.ok()) << read.error().to_string();
  EXPECT_EQ(read->engine_id, worker.engine_id);
  EXPECT_EQ(read->incarnation, worker.incarnation);
  EXPECT_EQ(read->rank, worker.rank);
  EXPECT_EQ(read->layout, worker.layout);
  EXPECT_EQ(read->fabrics, worker.fabrics);
  ASSERT_EQ(read->regions.size(), 2U);
  EXPECT_EQ(read->regions[0].info.base, worker.regions[0].info.base);
  EXPECT_EQ(read->regions[0].device, 3U);
  EXPECT_EQ(read->regions[0].keys, worker.regions[0].keys);
  EXPECT_FALSE(parse_worker("\x0a\xff").ok());
  EXPECT_FALSE(parse_worker("").ok());
}

TEST(BootstrapWorker, TellsKeysOnlyOfOpenRegionsAndOnlyInModeOpen) {
  WorkerInfo worker = some_worker();
  EXPECT_TRUE(parse_worker(to_protobuf(worker))->regions[1].keys.empty());
  EXPECT_NE(to_json(worker).find("\"keys\":[{\"name\":\"ucx\",\"value\":\"awF5\"}]"), std::string::npos);
  EXPECT_EQ(to_json(worker).find("c2VjcmV0"), std::string::npos);
  worker.auth = AuthMode::psk;
  EXPECT_TRUE(parse_worker(to_protobuf(worker))->regions[0].keys.empty());
  EXPECT_EQ(to_json(worker).find("keys"), std::string::npos);
}

TEST(BootstrapConfig, FlagsWinOverTheEnvironment) {
  const Environment environment(Variables{{"VLLM_MOONCAKE_BOOTSTRAP_PORT", "9100"}});
  EXPECT_EQ(parse_config({}, Environment(Variables()))->config.server.port, 8998);
  EXPECT_EQ(parse_config({}, environment)->config.server.port, 9100);
  const auto parsed = parse_config({"--port", "9200", "--plain-ttl", "5m", "--token", "s3cret"}, environment);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->config.server.port, 9200);
  EXPECT_EQ(parsed->config.server.directory.plain_ttl, std::chrono::minutes(5));
  EXPECT_EQ(parsed->config.to_string().find("s3cret"), std::string::npos);
  EXPECT_FALSE(parsed->config.server.host.empty());
  for (const std::vector<std::string>& wrong : {std::vector<std::string>{"--port", "70000"},
                                                {"--query-ttl", "soon"},
                                                {"--max-workers", "0"},
                                                {"--head-timeout", "0"},
                                                {"--nonsense"},
                                                {"--log-level", "loud"}}) {
    EXPECT_FALSE(parse_config(wrong, Environment(Variables())).ok()) << wrong[0];
  }
  EXPECT_FALSE(parse_config({}, Environment(Variables{{"VLLM_MOONCAKE_BOOTSTRAP_PORT", "x"}})).ok());
  EXPECT_FALSE(parse_config({"--help"}, Environment(Variables()))->help.empty());
}

}  // namespace
}  // namespace kvferry::bootstrap
