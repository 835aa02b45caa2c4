#include <gtest/gtest.h>

#include <future>
#include <mutex>
#include <thread>

#include "bootstrap/bootstrap.h"
#include "test/support/eventually.h"
#include "test/support/free_port.h"
#include "test/support/http_call.h"

namespace kvferry::bootstrap {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using test::Answer;
using test::call;
using test::eventually;

// An owner of parcels that answers as it is told.
class FakeParcels final : public ParcelControl {
 public:
  void state(const std::string& id, std::function<void(std::optional<ParcelReport>)> done) override {
    if (id != "held") return done(std::nullopt);
    done(ParcelReport{"claimed", milliseconds(1500), 2});
  }
  void release(const std::string& id, bool force, std::function<void(ReleaseState)> done) override {
    const std::lock_guard lock(mutex_);
    calls_.push_back(id + (force ? " force" : ""));
    if (id == "slow") {
      kept_ = std::move(done);
    } else {
      done(id == "busy" ? ReleaseState::pending : ReleaseState::acknowledged);
    }
  }
  std::vector<std::string> calls() {
    const std::lock_guard lock(mutex_);
    return calls_;
  }
  // The answer to the slow release; true if there was one.
  bool answer() {
    std::function<void(ReleaseState)> done;
    {
      const std::lock_guard lock(mutex_);
      done.swap(kept_);
    }
    if (done) done(ReleaseState::acknowledged);
    return static_cast<bool>(done);
  }

 private:
  std::mutex mutex_;
  std::vector<std::string> calls_;
  std::function<void(ReleaseState)> kept_;
};

// Nothing runs out while the machine stands still for some seconds.
ServerSettings settings() {
  ServerSettings out;
  out.port = 0;
  out.logger = make_null_logger();
  out.head_timeout = out.body_timeout = out.release_limit = seconds(60);
  out.worker_heartbeat = milliseconds(100);
  out.worker_ttl = seconds(60);
  out.gathering = Duration(0);
  return out;
}

// For releases that are not answered.
ServerSettings impatient() {
  ServerSettings out = settings();
  out.release_limit = milliseconds(600);
  return out;
}

std::unique_ptr<BlockingClient> patient_client() {
  BlockingClient::Config config;
  config.timeout = seconds(60);
  return BlockingClient::create(std::move(config)).value();
}

std::unique_ptr<Server> start(ServerSettings with, ParcelControl* parcels = nullptr) {
  auto created = Server::create(std::move(with), parcels);
  KVF_CHECK(created.ok());
  return std::move(created).value();
}

std::string url_of(const Server& server, const std::string& space = "") {
  return "http://127.0.0.1:" + std::to_string(server.port()) + space;
}

WorkerInfo worker(const std::string& instance, uint64_t incarnation, uint32_t tp = 0) {
  WorkerInfo info;
  info.engine_id = instance + "/0.0." + std::to_string(tp);
  info.instance_id = instance;
  info.incarnation = incarnation;
  info.address = "127.0.0.1:" + std::to_string(7100 + tp);
  info.rank = {2, tp, 1, 0, 1, 0};
  return info;
}

const std::string kPlain = R"({"engine_id":"e1","dp_rank":0,"tp_rank":0,"pp_rank":0,"addr":"tcp://10.0.0.2:41234"})";

TEST(BootstrapServer, ServesVllmsContractToTheByte) {
  const auto server = start(settings());
  EXPECT_EQ(call(server->port(), "GET", "/query").body, "{}");
  const Answer registered = call(server->port(), "POST", "/register", kPlain);
  EXPECT_EQ(registered.status, 200);
  EXPECT_EQ(registered.body, R"({"status":"ok"})");
  EXPECT_EQ(call(server->port(), "POST", "/register", kPlain).status, 200);
  const Answer query = call(server->port(), "GET", "/query");
  EXPECT_EQ(query.body, R"({"0":{"engine_id":"e1","worker_addr":{"0":{"0":"tcp://10.0.0.2:41234"}}}})");
  EXPECT_NE(query.head.find("Content-Type: application/json"), std::string::npos);
  EXPECT_EQ(call(server->port(), "GET", "/other/query").body, "{}");
  EXPECT_EQ(call(server->port(), "DELETE", "/register", R"({"engine_id":"e1"})").body,
            R"({"status":"ok","removed":1})");
  EXPECT_EQ(call(server->port(), "GET", "/query").body, "{}");
}

TEST(BootstrapServer, RefusesBadRequestsWithAJsonError) {
  const auto server = start(settings());
  const std::vector<std::tuple<std::string, std::string, std::string, int>> cases = {
      {"POST", "/register", "nonsense", 400},
      {"POST", "/register", R"({"engine_id":1})", 400},
      {"POST", "/register", R"({"engine_id":"e","dp_rank":99999,"tp_rank":0,"pp_rank":0,"addr":"tcp://h:1"})", 400},
      {"POST", "/heartbeat", R"({"engine_id":"e","dp_rank":0,"tp_rank":0,"pp_rank":0})", 404},
      {"PUT", "/register", "{}", 405},
      {"POST", "/query", "{}", 405},
      {"GET", "/nowhere", "", 404},
      {"GET", "/v1/worker", "", 404},
      {"GET", "/v1/parcels/x", "", 404},
      {"DELETE", "/v1/parcels/x", "", 503},
      {"POST", "/register", std::string(10 << 20, 'x'), 413},
  };
  for (const auto& [method, target, body, status] : cases) {
    const Answer answer = call(server->port(), method, target, body);
    EXPECT_EQ(answer.status, status) << method << " " << target << " " << answer.body;
    EXPECT_TRUE(answer.body.starts_with(R"({"error":{"message":)")) << answer.body;
  }
}

TEST(BootstrapServer, AsksForTheTokenWhereStateChanges) {
  ServerSettings with = settings();
  with.token = "s3cret";
  FakeParcels parcels;
  const auto server = start(with, &parcels);
  EXPECT_EQ(call(server->port(), "POST", "/register", kPlain).status, 401);
  EXPECT_EQ(call(server->port(), "POST", "/register", kPlain, "Authorization: Bearer wrong\r\n").status, 401);
  EXPECT_EQ(call(server->port(), "POST", "/heartbeat", "{}").status, 401);
  EXPECT_EQ(call(server->port(), "DELETE", "/register", "{}").status, 401);
  EXPECT_EQ(call(server->port(), "DELETE", "/v1/parcels/x").status, 401);
  EXPECT_TRUE(parcels.calls().empty());
  EXPECT_EQ(call(server->port(), "POST", "/register", kPlain, "Authorization: Bearer s3cret\r\n").status, 200);
  EXPECT_NE(call(server->port(), "GET", "/query").body, "{}");
}

TEST(BootstrapServer, DescribesItsWorkerInJsonAndProtobuf) {
  const auto server = start(settings());
  server->set_worker(worker("inst", 7));
  EXPECT_NE(call(server->port(), "GET", "/v1/worker").body.find(R"("incarnation":"0000000000000007")"),
            std::string::npos);
  const auto client = patient_client();
  const auto info = client->worker(url_of(*server));
  ASSERT_TRUE(info.ok()) << info.error().to_string();
  EXPECT_EQ((*info)->engine_id, "inst/0.0.0");
  EXPECT_EQ((*info)->incarnation, 7U);
}

TEST(BootstrapServer, ShowsAndReleasesParcels) {
  FakeParcels parcels;
  const auto server = start(settings(), &parcels);
  EXPECT_EQ(call(server->port(), "GET", "/v1/parcels/held").body,
            R"({"transfer_id":"held","state":"claimed","age_s":1.500,"readers":2})");
  EXPECT_EQ(call(server->port(), "GET", "/v1/parcels/other").status, 404);
  EXPECT_EQ(call(server->port(), "DELETE", "/v1/parcels/a%2Fb?force=1").status, 200);
  EXPECT_EQ(call(server->port(), "DELETE", "/v1/parcels/c?force=0").status, 200);
  EXPECT_EQ(call(server->port(), "DELETE", "/v1/parcels/busy").status, 202);
  EXPECT_EQ(parcels.calls(), (std::vector<std::string>{"a/b force", "c", "busy"}));
}

TEST(BootstrapServer, WaitsForASlowReleaseAndSurvivesOneThatComesAfterItsEnd) {
  FakeParcels parcels;
  auto server = start(settings(), &parcels);
  auto answer = std::async(std::launch::async, [&] { return call(server->port(), "DELETE", "/v1/parcels/slow"); });
  ASSERT_TRUE(eventually([&] { return parcels.answer(); }));
  EXPECT_EQ(answer.get().status, 200);
  server.reset();
  server = start(impatient(), &parcels);
  EXPECT_EQ(call(server->port(), "DELETE", "/v1/parcels/slow").status, 202);  // not in time
  server.reset();
  EXPECT_TRUE(parcels.answer());
}

// A base and a worker of rank 0 in one process, and a worker of rank 1.
TEST(BootstrapServer, ADeleteAtTheBaseReachesAllRanks) {
  FakeParcels first, second;
  const auto base = start(settings(), &first);
  ServerSettings other = settings();
  other.keeps_directory = false;
  other.base_url = url_of(*base);
  auto rank1 = start(other, &second);
  base->set_worker(worker("inst", 1, 0));
  rank1->set_worker(worker("inst", 2, 1));
  ASSERT_TRUE(eventually([&] { return call(base->port(), "GET", "/query").body != "{}"; }));
  const Answer all = call(base->port(), "DELETE", "/v1/parcels/x?force=1");
  EXPECT_EQ(all.status, 200) << all.body;
  EXPECT_EQ(first.calls(), std::vector<std::string>{"x force"});
  EXPECT_EQ(second.calls(), std::vector<std::string>{"x force"});
  // A worker that leaves takes its registration back, long before that would end by itself.
  rank1.reset();
  EXPECT_TRUE(eventually([&] { return call(base->port(), "GET", "/query").body == "{}"; }, seconds(30)));
}

TEST(BootstrapServer, ADeleteNamesTheRanksThatHaveNotAnsweredInTime) {
  FakeParcels first, second;
  const auto base = start(impatient(), &first);
  ServerSettings other = impatient();
  other.keeps_directory = false;
  other.base_url = url_of(*base);
  const auto rank1 = start(other, &second);
  base->set_worker(worker("inst", 1, 0));
  rank1->set_worker(worker("inst", 2, 1));
  ASSERT_TRUE(eventually([&] { return call(base->port(), "GET", "/query").body != "{}"; }));
  const Answer late = call(base->port(), "DELETE", "/v1/parcels/slow");
  EXPECT_EQ(late.status, 202);
  EXPECT_NE(late.body.find(R"("tp_rank":1)"), std::string::npos) << late.body;
}

// A directory that was just started may not know all workers again.
TEST(BootstrapServer, ADeleteAtADirectoryOfOthersWaitsUntilTheyHadTheTimeToComeBack) {
  const auto answer = [](Duration gathering, int awaited) {
    ServerSettings at = settings();
    at.gathering = gathering;
    const auto base = start(at);
    FakeParcels parcels;
    ServerSettings one = settings();
    one.keeps_directory = false;
    one.base_url = url_of(*base);
    const auto rank = start(one, &parcels);
    rank->set_worker(worker("inst", 1));
    Answer last;
    EXPECT_TRUE(eventually([&] {
      last = call(base->port(), "DELETE", "/v1/parcels/x?force=1");
      return last.status == awaited;
    })) << last.body;
    EXPECT_FALSE(parcels.calls().empty()) << "who is known is told at once";
    return last.body;
  };
  EXPECT_EQ(answer(std::chrono::hours(1), 202), R"({"status":"pending","waiting":[{"gathering":true}]})");
  EXPECT_EQ(answer(milliseconds(100), 200), R"({"status":"released","ranks":1})");
}

TEST(BootstrapServer, ADeleteListsTheRanksThatCannotBeReached) {
  const auto base = start(settings());
  ASSERT_EQ(call(base->port(), "POST", "/register", kPlain).status, 200);
  EXPECT_EQ(call(base->port(), "DELETE", "/v1/parcels/x").status, 404);  // vLLM's own workers know no parcels
  const std::string dead =
      R"({"engine_id":"e1","dp_rank":0,"tp_rank":3,"pp_rank":0,"addr":"tcp://127.0.0.1:9","http":"http://127.0.0.1:9"})";
  ASSERT_EQ(call(base->port(), "POST", "/register", dead).status, 200);
  const Answer answer = call(base->port(), "DELETE", "/v1/parcels/x");
  EXPECT_EQ(answer.status, 202);
  EXPECT_EQ(answer.body, R"({"status":"pending","waiting":[{"engine_id":"e1","dp_rank":0,"tp_rank":3,"pp_rank":0},)"
                         R"({"engine_id":"e1","dp_rank":0,"tp_rank":0,"pp_rank":0}]})");
}

TEST(BootstrapServer, ATakenPortNamesItsHolder) {
  const auto server = start(settings());
  ServerSettings same = settings();
  same.port = server->port();
  const auto second = Server::create(same);
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.error().to_string().find("held by pid " + std::to_string(::getpid())), std::string::npos)
      << second.error().to_string();
}

TEST(BootstrapServer, ListensOnTheGivenAddressOnly) {
  ServerSettings with = settings();
  with.host = "127.0.0.2";
  with.port = test::free_ports(1);
  const auto server = start(with);
  EXPECT_EQ(call(server->port(), "GET", "/health", "", "", "127.0.0.2").status, 200);
  EXPECT_EQ(call(server->port(), "GET", "/health").status, 0);  // 127.0.0.1: nobody
}

TEST(BootstrapClient, SeesARestartedWorkerWithinASecond) {
  const auto base = start(settings());
  ServerSettings one = settings();
  one.keeps_directory = false;
  one.base_url = url_of(*base, "/ns");
  auto old_worker = start(one);
  old_worker->set_worker(worker("life 1", 1));
  const auto client = patient_client();
  const auto engine = [&]() -> std::string {
    const auto workers = client->workers(url_of(*base, "/ns"));
    return workers.ok() && (*workers)->size() == 1 ? (*workers)->front().engine_id : "";
  };
  ASSERT_TRUE(eventually([&] { return engine() == "life 1"; }));
  // The quickest of a few restarts: the machine may stand still in one.
  std::unique_ptr<Server> new_worker;
  Duration took = Duration::max();
  uint64_t life = 1;
  while (took >= seconds(1) && life < 6) {
    if (new_worker) old_worker = std::move(new_worker);
    const std::string name = "life " + std::to_string(++life);
    new_worker = start(one);
    const TimePoint began = SystemClock().now();
    new_worker->set_worker(worker(name, life));
    ASSERT_TRUE(eventually([&] { return engine() == name; }));
    took = SystemClock().now() - began;
  }
  EXPECT_LT(took, seconds(1));
  RecordProperty("visible_after_ms", static_cast<int>(took / milliseconds(1)));
  // The old process goes on with its heartbeats, and does not come back.
  ASSERT_TRUE(
      eventually([&] { return base->metrics().find(R"(page="heartbeat",status="409")") != std::string::npos; }));
  EXPECT_EQ(engine(), "life " + std::to_string(life));
}

TEST(BootstrapClient, WorkersComeBackAfterTheServersRestart) {
  ServerSettings at = settings();
  at.port = test::free_ports(1);
  auto base = start(at);
  ServerSettings one = settings();
  one.keeps_directory = false;
  one.base_url = url_of(*base);
  const auto rank = start(one);
  rank->set_worker(worker("inst", 1));
  const uint16_t port = base->port();
  ASSERT_TRUE(eventually([&] { return call(port, "GET", "/query").body != "{}"; }));
  base.reset();
  base = start(at);
  EXPECT_TRUE(eventually([&] { return call(port, "GET", "/query").body.find("inst") != std::string::npos; }));
}

}  // namespace
}  // namespace kvferry::bootstrap
