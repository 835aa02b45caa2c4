// What the proxy offers besides the way of one request: dialects, ranks, restarts, the canary, TLS, the log.

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "bootstrap/bootstrap.h"
#include "test/system/proxy/fixture.h"

namespace kvferry::proxy {
namespace {

using mock::member_text;

class Features : public ProxySystem {
 protected:
  void SetUp() override {
    dir_ = std::filesystem::temp_directory_path() / ("kvferry-proxy-" + std::to_string(::getpid()));
    std::filesystem::create_directories(dir_);
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  std::filesystem::path dir_;
};

TEST_F(Features, LmcacheAsksThePrefillerThenTheDecoderWithoutParams) {
  config.dialect = Dialect::lmcache;
  add_prefill(prefiller, std::nullopt);
  start();
  EXPECT_EQ(ask(kPrompt)->status(), 200);
  ASSERT_EQ(prefiller.seen.size(), 1U);
  EXPECT_EQ(prefiller.seen[0].body.find("kv_transfer_params"), std::string::npos);
  EXPECT_NE(prefiller.seen[0].body.find("\"max_tokens\":1"), std::string::npos);
  EXPECT_EQ(decoder.seen.at(0).body, kPrompt);
  EXPECT_TRUE(nothing_pinned());
}

TEST_F(Features, APrefillersRankIsChosenWithItAndItsEngineIsToldToTheDecoder) {
  bootstrap.more_engines = {"engine-dp1", "engine-dp2"};
  config.policy = Policy::round_robin;
  start();
  const std::map<std::string, std::string> engines = {{"0", "engine-1"}, {"1", "engine-dp1"}, {"2", "engine-dp2"}};
  std::set<std::string> used;
  for (int i = 0; i < 6; ++i) {
    ASSERT_EQ(ask(kPrompt)->status(), 200);
    const std::string rank(prefiller.seen.back().headers.get("x-data-parallel-rank").value_or(""));
    ASSERT_TRUE(engines.contains(rank)) << rank;
    EXPECT_EQ(member_text(decoder.seen.back().body, "remote_engine_id"), engines.at(rank));
    used.insert(rank);
  }
  EXPECT_EQ(used.size(), 3U);
}

TEST_F(Features, ASessionStaysWithItsDecoder) {
  mock::MockServer second{loop, deadlines}, third{loop, deadlines};
  config.policy = Policy::session;
  for (const auto* server : {&decoder, &second, &third}) add_decode(*server);
  start();
  std::set<size_t> used;
  for (int session = 0; session < 12; ++session) {
    const std::array<size_t, 3> before{decoder.requests, second.requests, third.requests};
    const std::string header = "X-Session-ID: user-" + std::to_string(session) + "\r\n";
    for (int i = 0; i < 3; ++i) ASSERT_EQ(ask(kPrompt, "/v1/completions", header)->status(), 200);
    const std::array<size_t, 3> after_it{decoder.requests, second.requests, third.requests};
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(after_it[i] - before[i] == 0 || after_it[i] - before[i] == 3);
      if (after_it[i] > before[i]) used.insert(i);
    }
  }
  EXPECT_GT(used.size(), 1U);
}

// ---- restarts of a prefiller

TEST_F(Features, ARestartUnderLoadFailsNoRequestAndTheOldEngineIsForgotten) {
  prefiller.behaviour.delay = 5ms;
  start();
  std::vector<std::unique_ptr<RawClient>> asked;
  const auto more = [&](int count) {
    for (int i = 0; i < count; ++i) {
      asked.push_back(client());
      asked.back()->send(request("/v1/completions", kPrompt, "Connection: close\r\n"));
      run_for(2ms);
    }
  };
  more(20);
  prefiller.stop();
  bootstrap.engine_id = "engine-2";
  const size_t of_the_old = prefiller.seen.size();
  more(20);
  prefiller.start();
  ASSERT_TRUE(until([&] { return ask(kPrompt)->status() == 200 && prefiller.seen.size() > of_the_old; }));
  more(20);
  for (const auto& one : asked) {
    ASSERT_TRUE(until([&] { return one->closed(); }));
    EXPECT_EQ(one->status(), 200) << one->received();
  }
  std::set<std::string> of_the_new;
  for (size_t i = of_the_old; i < prefiller.seen.size(); ++i)
    of_the_new.insert(member_text(prefiller.seen[i].body, "transfer_id"));
  for (const auto& seen : decoder.seen) {
    if (!of_the_new.contains(member_text(seen.body, "transfer_id"))) continue;
    EXPECT_EQ(member_text(seen.body, "remote_engine_id"), "engine-2");
  }
  EXPECT_TRUE(nothing_pinned());
}

TEST_F(Features, WithoutLocalPrefillRequestsWaitForAPrefillerThatReturns) {
  config.local_prefill = false;
  config.prefiller_wait = 1h;
  start();
  prefiller.stop();
  auto waiting = client();
  waiting->send(request("/v1/completions", kPrompt));
  run_for(300ms);
  EXPECT_EQ(waiting->status(), 0) << waiting->received();
  prefiller.start();
  ASSERT_TRUE(until([&] { return waiting->status() != 0; }));
  EXPECT_EQ(waiting->status(), 200);
  EXPECT_EQ(prefiller.requests, 1U);
}

TEST_F(Features, WithoutLocalPrefillTheWaitEnds) {
  config.local_prefill = false;
  config.prefiller_wait = 200ms;
  start();
  prefiller.stop();
  const auto answer = ask(kPrompt);
  EXPECT_GE(answer->status(), 502);
  EXPECT_EQ(decoder.requests, 0U);
  EXPECT_TRUE(nothing_pinned());
}

// The prefiller is restarted between its answer and the decoder's claim: what it published is gone.
TEST_F(Features, ARequestWhosePrefillerWasRestartedUnderWayIsPrefilledAgain) {
  config.health_interval = 1h;
  decoder.behaviour.delay = mock::kUntilWoken;
  decoder.behaviour.status = 500;
  start();
  auto asked = client();
  asked->send(request("/v1/completions", kPrompt, "Connection: close\r\n"));
  ASSERT_TRUE(until([&] { return decoder.running == 1; }));
  bootstrap.engine_id = "engine-2";
  decoder.behaviour.delay = 0ms;
  ASSERT_EQ(decoder.wake(), 1U);
  ASSERT_TRUE(until([&] { return prefiller.requests == 2; }));
  decoder.behaviour.status = 200;
  ASSERT_TRUE(until([&] { return asked->closed(); }));
  EXPECT_EQ(asked->status(), 200);
  EXPECT_EQ(member_text(decoder.seen.back().body, "remote_engine_id"), "engine-2");
  EXPECT_TRUE(nothing_pinned());
}

// ---- a real bootstrap server over a real engine

TEST_F(Features, AParcelOfARealEngineIsReleasedAtAllItsRanksWhenTheClientLeaves) {
  auto engine = Engine::create({});
  ASSERT_TRUE(engine.ok());
  bootstrap::EngineParcels control(**engine);
  bootstrap::ServerSettings settings;
  settings.port = 0;
  settings.gathering = 500ms;  // until then it answers 202, and is asked again
  settings.logger = make_null_logger();
  const auto base = bootstrap::Server::create(settings);
  ASSERT_TRUE(base.ok());
  settings.worker_ttl = 1h;  // also where its heartbeats are late
  settings.keeps_directory = false;
  settings.base_url = "http://127.0.0.1:" + std::to_string((*base)->port());
  const auto rank = bootstrap::Server::create(settings, &control);
  ASSERT_TRUE(rank.ok());
  (*rank)->set_worker(bootstrap::worker_of(**engine, "instance-1", ParallelRank()));
  add_prefill(prefiller, (*base)->port());
  const auto told = bootstrap::BlockingClient::create({});
  ASSERT_TRUE(told.ok());
  ASSERT_TRUE(until([&] {
    const auto workers = (*told)->workers(settings.base_url);
    return workers.ok() && !(*workers)->empty();
  })) << "the rank registers itself";
  decoder.behaviour.delay = mock::kUntilWoken;
  start();
  auto asked = client();
  asked->send(request("/v1/completions", kPrompt));
  ASSERT_TRUE(until([&] { return decoder.running == 1 && !prefiller.seen.empty(); }));
  EXPECT_EQ(member_text(decoder.seen.at(0).body, "remote_engine_id"), "instance-1");
  const std::string id = member_text(prefiller.seen.at(0).body, "transfer_id");
  Parcels parcels(**engine);
  ASSERT_TRUE(parcels.announce(id).ok());
  asked->leave();
  EXPECT_TRUE(until([&] { return !parcels.status(id).has_value(); }));
  EXPECT_TRUE(nothing_pinned());
}

// ---- the canary

class Canary : public Features {
 protected:
  Canary() {
    config.canary_interval = 50ms;
    config.canary_model = "m";
  }
  ::testing::AssertionResult tells(const std::string& result) {
    start();
    const std::string line = "kvferry_proxy_canary_total{result=\"" + result + "\"} ";
    const auto counted = [&] {
      const std::string page = exposition();
      const size_t at = page.find(line);
      return at != std::string::npos && page[at + line.size()] != '0';
    };
    if (until(counted)) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << exposition();
  }
  std::string line_of(const std::string& result) {
    const std::string page = exposition();
    const size_t at = page.find("kvferry_proxy_canary_total{result=\"" + result);
    return at == std::string::npos ? "" : page.substr(at, page.find('\n', at) - at);
  }
};

TEST_F(Canary, ProvesThatKvMoved) {
  EXPECT_TRUE(tells("moved"));
  EXPECT_TRUE(line_of("not_moved").ends_with(" 0"));
}

TEST_F(Canary, SeesADecoderThatJustComputesThePrompt) {
  decoder.moves_kv = false;
  EXPECT_TRUE(tells("not_moved"));
  EXPECT_TRUE(line_of("moved").ends_with(" 0"));
}

TEST_F(Canary, SeesThatItsRequestFails) {
  decoder.behaviour.status = 500;
  EXPECT_TRUE(tells("failed"));
}

TEST_F(Canary, DoesNotJudgeWhatItCannotRead) {
  decoder.shows_metrics = false;
  EXPECT_TRUE(tells("failed"));
  EXPECT_TRUE(line_of("moved").ends_with(" 0"));
  EXPECT_TRUE(line_of("not_moved").ends_with(" 0"));
}

TEST_F(Canary, OneThatIsUnderWayEndsWithTheProxy) {
  decoder.behaviour.delay = mock::kUntilWoken;
  start();
  ASSERT_TRUE(until([&] { return decoder.running > 0; }));
  proxy.reset();
  EXPECT_TRUE(until([&] { return decoder.clients_lost > 0; }));
}

// ---- what is written down

TEST_F(Features, TheAccessLogHasOneLineARequestWithIdsAndStages) {
  config.access_log = (dir_ / "access.log").string();
  start();
  ask(kPrompt, "/v1/completions", "X-Request-Id: req-7\r\n");
  const std::string transfer = member_text(prefiller.seen.at(0).body, "transfer_id");
  std::string line;
  ASSERT_TRUE(until([&] {
    std::ifstream log(config.access_log);
    return static_cast<bool>(std::getline(log, line));
  }));
  for (const std::string& part :
       {std::string(" id=req-7 "), std::string(" method=POST path=/v1/completions status=200 cause=ok "),
        " prefill=127.0.0.1:" + std::to_string(prefiller.port()) + " ",
        " decode=127.0.0.1:" + std::to_string(decoder.port()) + " ", " transfer=" + transfer + " ",
        std::string(" queue_ms="), std::string(" prefill_ms="), std::string(" first_ms="), std::string(" total_ms="),
        std::string(" bytes=")})
    EXPECT_NE(line.find(part), std::string::npos) << part << " in " << line;
}

// Load that never pauses puts neither the log off nor the end of connections that it does not need.
TEST_F(Features, SteadyLoadPutsNothingOff) {
  config.access_log = (dir_ / "access.log").string();
  config.health_interval = 1h;
  decoder.behaviour.delay = mock::kUntilWoken;
  start();
  auto first = client(), second = client();
  first->send(request("/v1/completions", kPrompt));
  second->send(request("/v1/completions", kPrompt));
  ASSERT_TRUE(until([&] { return decoder.running == 2; }));
  decoder.behaviour.delay = 0ms;
  EXPECT_EQ(decoder.wake(), 2U);
  ASSERT_TRUE(until([&] { return first->status() == 200 && second->status() == 200; }));
  const auto load = [this](int requests, Duration pace) {
    for (int i = 0; i < requests; ++i) {
      clock.forward(pace);
      deadlines.sweep();
      ask(kPrompt);
    }
  };
  load(5, 90ms);
  std::ifstream log(config.access_log);
  EXPECT_GE(std::count(std::istreambuf_iterator<char>(log), {}, '\n'), 4);
  load(15, 400ms);
  const bool one_left = exposition().find("kvferry_proxy_upstream_idle 2\n") != std::string::npos;
  EXPECT_TRUE(one_left) << "of two that were used at once, for each leg";
}

// ---- TLS

// A self-signed certificate for localhost and its key, in one PEM file each.
void write_certificate(const std::filesystem::path& certificate, const std::filesystem::path& key) {
  EVP_PKEY* pair = EVP_EC_gen("P-256");
  X509* cert = X509_new();
  ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
  X509_gmtime_adj(X509_getm_notBefore(cert), 0);
  X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
  X509_set_pubkey(cert, pair);
  X509_NAME* name = X509_get_subject_name(cert);
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("localhost"), -1, -1, 0);
  X509_set_issuer_name(cert, name);
  ASSERT_GT(X509_sign(cert, pair, EVP_sha256()), 0);
  FILE* file = std::fopen(certificate.c_str(), "w");
  PEM_write_X509(file, cert);
  std::fclose(file);
  file = std::fopen(key.c_str(), "w");
  PEM_write_PrivateKey(file, pair, nullptr, nullptr, 0, nullptr, nullptr);
  std::fclose(file);
  std::filesystem::permissions(key, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  X509_free(cert);
  EVP_PKEY_free(pair);
}

class TlsFront : public Features {
 protected:
  void SetUp() override {
    Features::SetUp();
    config.tls_certificate = (dir_ / "cert.pem").string();
    config.tls_key = (dir_ / "key.pem").string();
    write_certificate(config.tls_certificate, config.tls_key);
  }
  // The whole answer over TLS, its certificate checked against ours.
  std::string ask_secretly(const std::string& text) { return ask_secretly(text, proxy->port()); }
  std::string ask_secretly(const std::string& text, uint16_t port) {
    boost::asio::ssl::context context(boost::asio::ssl::context::tls_client);
    context.load_verify_file(config.tls_certificate);
    context.set_verify_mode(boost::asio::ssl::verify_peer);
    boost::asio::ssl::stream<boost::asio::ip::tcp::socket> stream(loop, context);
    std::string received;
    bool ended = false;
    const auto exchange = [&]() -> boost::asio::awaitable<void> {
      constexpr auto use_tuple = boost::asio::as_tuple(boost::asio::use_awaitable);
      const boost::asio::ip::tcp::endpoint there(boost::asio::ip::make_address("127.0.0.1"), port);
      co_await stream.lowest_layer().async_connect(there, use_tuple);
      const auto [refused] = co_await stream.async_handshake(boost::asio::ssl::stream_base::client, use_tuple);
      if (!refused) {
        co_await boost::asio::async_write(stream, boost::asio::buffer(text), use_tuple);
        std::array<char, 4096> block;
        for (bool more = true; more;) {
          const auto [error, got] = co_await stream.async_read_some(boost::asio::buffer(block), use_tuple);
          received.append(block.data(), got);
          more = !error;
        }
      }
      ended = true;
    };
    boost::asio::co_spawn(loop, exchange(), boost::asio::detached);
    EXPECT_TRUE(until([&] { return ended; }));
    return received;
  }
};

TEST_F(TlsFront, AnswersAndStreamsComeThroughWhole) {
  decoder.behaviour.events = 300;
  decoder.behaviour.event_bytes = 700;
  start();
  const std::string plain = ask_secretly(request("/v1/completions", kPrompt, "Connection: close\r\n"));
  EXPECT_TRUE(plain.starts_with("HTTP/1.1 200 OK\r\n")) << plain;
  EXPECT_NE(plain.find("\"finish_reason\":\"length\""), std::string::npos);
  const std::string stream = ask_secretly(request("/v1/completions", kStream, "Connection: close\r\n"));
  EXPECT_TRUE(stream.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"));
  EXPECT_NE(stream.find("\"index\":299"), std::string::npos);
  const std::string large = ask_secretly(
      request("/v1/completions", R"({"prompt":")" + std::string(1 << 20, 'p') + "\"}", "Connection: close\r\n"));
  EXPECT_TRUE(large.starts_with("HTTP/1.1 200 OK\r\n"));
  EXPECT_GT(decoder.seen.back().body.size(), size_t{1} << 20);
  EXPECT_TRUE(nothing_pinned());
}

TEST_F(TlsFront, TheCanaryNeedsNeitherCertificateNorKey) {
  config.require_key = "secret";
  config.canary_interval = 50ms;
  config.canary_model = "m";
  start();
  EXPECT_TRUE(until([&] { return proxy->metrics().canary_moved.value() > 0; }));
  EXPECT_EQ(proxy->metrics().canary_failed.value(), 0U);
}

TEST_F(TlsFront, AHandshakeThatTricklesInIsEndedInTime) {
  start();
  const auto slow = client();
  const std::string hello("\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03", 11);  // the first of 16 KiB
  const auto sent = trickle(*slow, hello);
  ASSERT_TRUE(sent);
  EXPECT_LT(*sent, 1000) << "it was the handshake's end that ended it";
  EXPECT_EQ(slow->received(), "");
  EXPECT_TRUE(ask_secretly("GET /health HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").starts_with("HTTP/1.1 200"));
}

TEST_F(TlsFront, PlainHttpGetsNoAnswerAndDisturbsNobody) {
  start();
  auto plain = client();
  plain->send("GET /health HTTP/1.1\r\nHost: t\r\n\r\n");
  EXPECT_TRUE(until([&] { return plain->closed(); }));
  EXPECT_FALSE(plain->has("HTTP/1.1 200"));
  EXPECT_TRUE(ask_secretly("GET /health HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").starts_with("HTTP/1.1 200"));
}

TEST_F(TlsFront, TheAdminServerSpeaksTlsWhereToldTo) {
  config.admin_tls = true;
  config.admin_key = "admin";
  start();
  const std::string get = "GET /admin/backends HTTP/1.1\r\nHost: t\r\nConnection: close\r\n";
  EXPECT_TRUE(ask_secretly(get + "\r\n", proxy->admin_port()).starts_with("HTTP/1.1 401"));
  EXPECT_TRUE(
      ask_secretly(get + "Authorization: Bearer admin\r\n\r\n", proxy->admin_port()).starts_with("HTTP/1.1 200"));
  RawClient plain(loop, proxy->admin_port());
  plain.send(get + "Authorization: Bearer admin\r\n\r\n");
  EXPECT_TRUE(until([&] { return plain.closed(); }));
  EXPECT_FALSE(plain.has("HTTP/1.1 200"));
}

TEST_F(TlsFront, ABadCertificateIsRefusedAtTheStart) {
  add_prefill(prefiller, bootstrap.port());
  add_decode(decoder);
  const auto refusal = [&] {
    const auto made = Proxy::create(loop, deadlines, random, make_null_logger(), config);
    return made.ok() ? std::string() : made.error().to_string();
  };
  std::filesystem::permissions(config.tls_key, std::filesystem::perms::group_read, std::filesystem::perm_options::add);
  EXPECT_NE(refusal().find("others may use the key file"), std::string::npos) << refusal();
  std::filesystem::permissions(config.tls_key, std::filesystem::perms::group_read,
                               std::filesystem::perm_options::remove);
  write_certificate(dir_ / "other.pem", dir_ / "other.key");
  const std::string key = std::exchange(config.tls_key, (dir_ / "other.key").string());
  EXPECT_NE(refusal().find("private key"), std::string::npos) << "another certificate's: " << refusal();
  config.tls_key = key;
  std::ofstream(config.tls_key) << "nonsense";
  EXPECT_NE(refusal().find("private key"), std::string::npos) << refusal();
}

}  // namespace
}  // namespace kvferry::proxy
