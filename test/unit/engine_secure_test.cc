#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "test/support/secure_ends.h"

namespace kvferry::test {
namespace {

using ::testing::HasSubstr;

TEST_F(SecureStreamTest, CarriesBytesHoweverTheyAreCut) {
  for (const AuthMode mode : {AuthMode::psk, AuthMode::mtls})
    for (const auto& [at_once, span, read_span] : {std::tuple{SIZE_MAX, size_t{100}, size_t{1000}},
                                                   {size_t{1000}, size_t{50000}, size_t{7}},
                                                   {size_t{17}, size_t{3000}, size_t{4096}},
                                                   {SIZE_MAX, size_t{16384}, size_t{16384}}}) {
      connect(keys_->of(mode), keys_->of(mode));
      client_->pipe->read_at_once = server_->pipe->read_at_once = at_once;
      client_->read_span = server_->read_span = read_span;
      const std::string up = text_of(200000, 1);
      const std::string down = text_of(70000, 2);
      client_->send(up, span);
      server_->send(down, span);
      pump();
      ASSERT_FALSE(client_->error) << client_->error->to_string();
      ASSERT_FALSE(server_->error) << server_->error->to_string();
      EXPECT_TRUE(server_->received == up) << server_->received.size();
      EXPECT_TRUE(client_->received == down) << client_->received.size();
    }
}

TEST_F(SecureStreamTest, ShowsNothingOfWhatItCarries) {
  connect(keys_->psk(), keys_->psk());
  client_->send("the very secret " + std::string(100, 'x'), 1000);
  pump();
  EXPECT_EQ(server_->received.size(), 116u);
  EXPECT_THAT(wire_, ::testing::Not(HasSubstr("secret")));
}

// A record costs 22 bytes and a call; 64 bytes each would be dear.
TEST_F(SecureStreamTest, GathersSmallSpansIntoWholeRecords) {
  connect(keys_->psk(), keys_->psk());
  pump();
  on_wire_ = 0;
  client_->send(text_of(64000, 3), 64);
  pump();
  EXPECT_EQ(server_->received.size(), 64000u);
  EXPECT_LE(on_wire_, 64000u + 5 * 22);
}

TEST_F(SecureStreamTest, HoldsABoundedAmountForAPeerThatDoesNotRead) {
  connect(keys_->psk(), keys_->psk());
  pump();
  client_->pipe->room = 1;
  const std::string large = text_of(1 << 20, 4);
  client_->send(large, 10000);
  client_->pipe->pump();
  const size_t accepted = large.size() - client_->to_send.size();
  EXPECT_GT(accepted, size_t{64} << 10);
  EXPECT_LT(accepted, size_t{160} << 10);
  const iovec more{client_->to_send.data(), client_->to_send.size()};
  EXPECT_EQ(client_->stream().write({&more, 1}).value(), 0u);
  client_->pipe->room = SIZE_MAX;
  pump();
  EXPECT_TRUE(server_->received == large);
}

// What was decrypted and not taken is told again, though nothing more lies in the stream beneath.
TEST_F(SecureStreamTest, CallsAgainForWhatItStillHolds) {
  connect(keys_->psk(), keys_->psk());
  pump();
  server_->reads_at_once = 1;
  server_->read_span = 10;
  const std::string bytes = text_of(5000, 5);
  client_->send(bytes, 5000);
  pump();
  EXPECT_TRUE(server_->received == bytes);

  server_->pause(true);
  client_->send("more", 4);
  pump();
  server_->pipe->pump();
  EXPECT_EQ(server_->received.size(), 5000u);
  server_->pause(false);
  pump();
  EXPECT_EQ(server_->received.size(), 5004u);
}

// I4: what was received before the other side reset the connection stays unread because its reader asks torn() first.
TEST_F(SecureStreamTest, IsTornAsSoonAsTheStreamBeneathIs) {
  connect(keys_->psk(), keys_->psk());
  pump();
  server_->reads_at_once = 1;
  server_->read_span = 10;
  server_->pause(true);
  client_->send(text_of(5000, 6), 5000);
  pump();
  EXPECT_FALSE(server_->stream().torn());
  server_->pipe->torn = true;
  EXPECT_TRUE(server_->stream().torn());
  server_->stream().reset_on_close();
  EXPECT_TRUE(server_->pipe->was_reset);
}

TEST_F(SecureStreamTest, ChangesItsKeysBeforeTheyAreWornOut) {
  bytes_per_key_ = 50000;
  connect(keys_->psk(), keys_->psk());
  pump();
  wire_.clear();
  const std::string up = text_of(1 << 20, 7);
  client_->send(up, 30000);
  server_->send(up, 100);
  pump();
  // A change of keys is the only message of five bytes: 22 with its type and tag.
  size_t changes = 0;
  for (size_t at = 0; at + 5 <= wire_.size();) {
    const size_t length =
        static_cast<size_t>(static_cast<unsigned char>(wire_[at + 3])) << 8 | static_cast<unsigned char>(wire_[at + 4]);
    changes += length == 22;
    at += 5 + length;
  }
  EXPECT_GE(changes, 15u);
  ASSERT_FALSE(server_->error || client_->error);
  EXPECT_TRUE(server_->received == up);
  EXPECT_TRUE(client_->received == up);
}

TEST_F(SecureStreamTest, BytesThatWereChangedOnTheWayEndTheConnection) {
  connect(keys_->psk(), keys_->psk());
  pump();
  client_->send(text_of(1000, 8), 1000);
  pump([](std::string& bytes) { bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1); });
  ASSERT_TRUE(server_->error);
  EXPECT_EQ(server_->error->code, ErrorCode::protocol);
  EXPECT_EQ(server_->received, "");
  EXPECT_TRUE(client_->error);
}

TEST_F(SecureStreamTest, BytesThatAreRepeatedEndTheConnection) {
  connect(keys_->psk(), keys_->psk());
  pump();
  client_->send("pay", 3);
  pump([](std::string& bytes) { bytes += bytes; });
  EXPECT_EQ(server_->received, "pay");
  ASSERT_TRUE(server_->error);
}

// ---- who may not come in

TEST_F(SecureStreamTest, AnotherSecretIsRefusedByBothSides) {
  ASSERT_TRUE(keys_->write("other", std::string(40, 'o')).ok());
  AuthConfig other = *keys_->psk();
  other.psk_file = keys_->path("other");
  connect(other, keys_->psk());
  expect_refused("the handshake failed", "does not accept this engine's secret");
}

// Who knows which key is meant but not the key.
TEST_F(SecureStreamTest, ARightIdentityWithAWrongKeyIsRefused) {
  connect(keys_->psk(), keys_->psk());
  client_->send("hello", 5);
  bool spoilt = false;
  pump([&](std::string& bytes) {
    // The binder is the end of the first flight.
    if (!std::exchange(spoilt, true)) bytes.back() = static_cast<char>(bytes.back() ^ 1);
  });
  ASSERT_TRUE(server_->error);
  EXPECT_TRUE(client_->error);
  EXPECT_EQ(server_->received, "");
}

TEST_F(SecureStreamTest, SecretsAreExchangedOneAfterTheOther) {
  const std::string former(40, 'f');
  const std::string later(40, 'l');
  const auto with = [&](const std::string& name, const std::string& lines) {
    EXPECT_TRUE(keys_->write(name, lines).ok());
    AuthConfig auth = *keys_->psk();
    auth.psk_file = keys_->path(name);
    return auth;
  };
  const AuthConfig before = with("1", former + "\n");
  const AuthConfig both = with("2", "# the later one is accepted already\n\n" + former + "\r\n" + later + "\n");
  const AuthConfig turned = with("3", later + "\n" + former + "\n");
  const AuthConfig behind = with("4", later);
  for (const auto& [client, server] :
       {std::pair{before, both}, {both, before}, {turned, both}, {both, turned}, {behind, turned}, {turned, behind}}) {
    connect(client, server);
    client_->send("hello", 5);
    pump();
    EXPECT_EQ(server_->received, "hello");
  }
  connect(before, behind);
  expect_refused("", "secret");
}

TEST_F(SecureStreamTest, CertificatesThatMustNotCount) {
  const auto other = bench::TrialKeys::create();
  ASSERT_TRUE(other.ok());
  ASSERT_TRUE(keys_->sign("late", {"engine.trial", -7200, -3600, false}).ok());
  ASSERT_TRUE(keys_->sign("early", {"engine.trial", 3600, 7200, false}).ok());
  ASSERT_TRUE(keys_->sign("stranger", {"stranger.trial", -60, 3600, false}).ok());
  AuthConfig foreign = *(*other)->mtls();
  foreign.ca_file = keys_->path("ca.crt");  // it believes us; we do not believe its authority
  const auto good = keys_->mtls();
  for (const auto& [bad, why] : {std::pair{keys_->mtls_with("late"), "expired"},
                                 {keys_->mtls_with("early"), "not yet valid"},
                                 {keys_->mtls_with("stranger"), "none of the allowed names"},
                                 {foreign, "certificate"}}) {
    connect(bad, good);
    expect_refused(why, "does not accept this engine's certificate");
    connect(good, bad);
    expect_refused("does not accept this engine's certificate", why);
  }
}

TEST_F(SecureStreamTest, AnRsaCertificateCounts) {
  ASSERT_TRUE(keys_->sign("rsa", {"engine.trial", -60, 3600, true}).ok());
  connect(keys_->mtls_with("rsa"), keys_->mtls());
  client_->send("hello", 5);
  pump();
  EXPECT_EQ(server_->received, "hello");
}

TEST_F(SecureStreamTest, ModesThatDifferAreNamedOnBothSides) {
  connect(keys_->psk(), keys_->mtls());
  expect_refused("auth mode is not mtls", "auth mode is not psk");
  connect(keys_->mtls(), keys_->psk());
  expect_refused("auth mode is not psk", "auth mode is not mtls");
}

TEST_F(SecureStreamTest, APeerInTheClearIsToldAndNamed) {
  server_ = end(context(keys_->psk()), true);
  server_->pipe->input = "KVFERRY1S" + std::string(7, '\0') + "frames";
  server_->pipe->pump();
  loop_.run_deferred();
  ASSERT_TRUE(server_->error);
  EXPECT_THAT(server_->error->message, HasSubstr("the peer's auth mode is open, this engine's is psk"));
  EXPECT_EQ(server_->pipe->output, refusal_);

  client_ = end(context(keys_->psk()), false);
  loop_.run_deferred();
  client_->pipe->input = std::string("\x30\0\0\0", 4) + "a frame in the clear";
  client_->pipe->pump();
  loop_.run_deferred();
  ASSERT_TRUE(client_->error);
  EXPECT_THAT(client_->error->message, HasSubstr("answers in the clear"));
}

TEST_F(SecureStreamTest, GarbageAndTruncatedHandshakes) {
  connect(keys_->psk(), keys_->psk());
  loop_.run_deferred();
  const std::string hello = client_->pipe->output;
  ASSERT_GT(hello.size(), 100u);
  for (size_t cut = 1; cut < hello.size(); cut += 7) {  // a flight that never ends is no error, and no bytes either
    server_ = end(context(keys_->psk()), true);
    server_->pipe->input = hello.substr(0, cut);
    server_->pipe->pump();
    loop_.run_deferred();
    EXPECT_FALSE(server_->error) << cut;
    server_->pipe->ended = true;
    server_->pipe->pump();
    loop_.run_deferred();
    EXPECT_TRUE(server_->error) << cut;
  }
  for (unsigned seed = 0; seed < 200; ++seed) {
    std::string bytes = hello;
    std::mt19937 numbers(seed);
    for (int i = 0; i < 3; ++i) bytes[numbers() % bytes.size()] = static_cast<char>(numbers());
    if (bytes == hello) continue;
    server_ = end(context(keys_->psk()), true);
    server_->pipe->input = bytes;
    server_->pipe->ended = true;
    server_->pipe->pump();
    loop_.run_deferred();
    EXPECT_TRUE(server_->error);
    EXPECT_EQ(server_->received, "");
  }
}

// A server that ignores the secret and shows a certificate of its own instead.
TEST_F(SecureStreamTest, AServerWithoutTheSecretIsNotBelieved) {
  ASSERT_TRUE(keys_->mtls().ok());
  const SslContextPtr rogue(SSL_CTX_new(TLS_server_method()));
  ASSERT_EQ(SSL_CTX_use_certificate_file(rogue.get(), keys_->path("engine.crt").c_str(), SSL_FILETYPE_PEM), 1);
  ASSERT_EQ(SSL_CTX_use_PrivateKey_file(rogue.get(), keys_->path("engine.key").c_str(), SSL_FILETYPE_PEM), 1);
  const SslPtr server(SSL_new(rogue.get()));
  SSL_set_bio(server.get(), BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
  client_ = end(context(keys_->psk()), false);
  client_->send("what nobody else may see", 100);
  for (int turn = 0; turn < 10; ++turn) {
    loop_.run_deferred();
    client_->pipe->pump();
    const std::string up = std::exchange(client_->pipe->output, {});
    if (!up.empty()) BIO_write(SSL_get_rbio(server.get()), up.data(), static_cast<int>(up.size()));
    SSL_accept(server.get());
    std::array<char, 20000> down{};
    const int count = BIO_read(SSL_get_wbio(server.get()), down.data(), static_cast<int>(down.size()));
    if (count > 0) client_->pipe->input.append(down.data(), static_cast<size_t>(count));
  }
  ASSERT_TRUE(client_->error);
  EXPECT_EQ(client_->error->code, ErrorCode::permission_denied);
  EXPECT_EQ(client_->to_send, "what nobody else may see");
  std::array<char, 100> words{};
  EXPECT_LE(SSL_read(server.get(), words.data(), 100), 0);
}

// An older version of the protocol is not spoken, whoever asks for it.
TEST_F(SecureStreamTest, OlderVersionsOfTlsAreRefused) {
  const SslContextPtr old(SSL_CTX_new(TLS_client_method()));
  SSL_CTX_set_max_proto_version(old.get(), TLS1_2_VERSION);
  const SslPtr client(SSL_new(old.get()));
  SSL_set_bio(client.get(), BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
  const std::string_view protocol = "\x0ekvferry/1 mtls";  // without which it would be refused for another reason
  SSL_set_alpn_protos(client.get(), reinterpret_cast<const unsigned char*>(protocol.data()),
                      static_cast<unsigned>(protocol.size()));
  SSL_connect(client.get());
  std::array<char, 4096> hello{};
  const int count = BIO_read(SSL_get_wbio(client.get()), hello.data(), static_cast<int>(hello.size()));
  ASSERT_GT(count, 0);
  server_ = end(context(keys_->mtls()), true);
  server_->pipe->input.assign(hello.data(), static_cast<size_t>(count));
  server_->pipe->pump();
  loop_.run_deferred();
  ASSERT_TRUE(server_->error);
  EXPECT_EQ(server_->error->code, ErrorCode::permission_denied);
  EXPECT_NE(server_->error->to_string().find("unsupported protocol"), std::string::npos) << server_->error->to_string();
}

// ---- keys in files

TEST_F(SecureStreamTest, KeysThatOthersMayReadAreRefused) {
  for (const unsigned mode : {0640u, 0604u, 0660u}) {
    ASSERT_TRUE(keys_->write("wide", std::string(40, 'w'), mode).ok());
    AuthConfig auth = *keys_->psk();
    auth.psk_file = keys_->path("wide");
    const auto loaded = TlsContext::load(auth);
    ASSERT_FALSE(loaded.ok());
    EXPECT_EQ(loaded.error().code, ErrorCode::permission_denied);
    EXPECT_THAT(loaded.error().to_string(), HasSubstr("wide"));
  }
  AuthConfig mtls = *keys_->mtls();
  ASSERT_EQ(::chmod(mtls.key_file.c_str(), 0644), 0);
  EXPECT_EQ(TlsContext::load(mtls).error().code, ErrorCode::permission_denied);
}

// Its owner may put another secret there, or widen it.
TEST_F(SecureStreamTest, KeysOfAnotherUserAreRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to give a file away";
  ASSERT_TRUE(keys_->write("given", std::string(40, 'g')).ok());
  AuthConfig psk = *keys_->psk();
  psk.psk_file = keys_->path("given");
  ASSERT_TRUE(TlsContext::load(psk).ok());
  const AuthConfig mtls = *keys_->mtls();
  for (const std::string& file : {psk.psk_file, mtls.key_file}) ASSERT_EQ(::chown(file.c_str(), 65534, 65534), 0);
  for (const AuthConfig& auth : {psk, mtls}) {
    const auto loaded = TlsContext::load(auth);
    ASSERT_FALSE(loaded.ok());
    EXPECT_EQ(loaded.error().code, ErrorCode::permission_denied);
    EXPECT_THAT(loaded.error().to_string(), HasSubstr("belongs to another user"));
  }
}

TEST_F(SecureStreamTest, WeakAndMissingSecretsAreRefusedWithoutBeingQuoted) {
  const std::string weak = "hunter2";
  ASSERT_TRUE(keys_->write("weak", weak + "\n").ok());
  AuthConfig auth = *keys_->psk();
  auth.psk_file = keys_->path("weak");
  const auto loaded = TlsContext::load(auth);
  ASSERT_FALSE(loaded.ok());
  EXPECT_THAT(loaded.error().to_string(), ::testing::Not(HasSubstr(weak)));
  ASSERT_TRUE(keys_->write("weak", "# nothing\n\n").ok());
  EXPECT_FALSE(TlsContext::load(auth).ok());
  auth.psk_file = keys_->path("absent");
  EXPECT_FALSE(TlsContext::load(auth).ok());
  auth.psk_file = keys_->path(".");
  EXPECT_FALSE(TlsContext::load(auth).ok());
}

TEST_F(SecureStreamTest, ChangedFilesAreReadAndBrokenOnesLeaveTheFormerInForce) {
  MetricsRegistry metrics;
  auto credentials = Credentials::load(*keys_->psk(), make_null_logger(), metrics);
  ASSERT_TRUE(credentials.ok());
  const auto first = (*credentials)->current(loop_.now());
  ASSERT_TRUE(keys_->write("secret", std::string(40, 'n')).ok());
  loop_.advance(std::chrono::seconds(2));
  const auto second = (*credentials)->current(loop_.now());
  EXPECT_NE(first, second);
  ASSERT_TRUE(keys_->write("secret", "short").ok());
  loop_.advance(std::chrono::seconds(2));
  EXPECT_EQ((*credentials)->current(loop_.now()), second);
  EXPECT_THAT(metrics.expose(), HasSubstr("kvferry_credentials_reloaded_total{result=\"failed\"} 1"));
  EXPECT_THAT(metrics.expose(), HasSubstr("kvferry_credentials_reloaded_total{result=\"ok\"} 1"));
}

TEST(NameTest, MatchesWholeNamesAndOneLabel) {
  EXPECT_TRUE(name_matches("Engine.Trial", "engine.trial"));
  EXPECT_FALSE(name_matches("engine.trial.evil", "engine.trial"));
  EXPECT_FALSE(name_matches("xengine.trial", "engine.trial"));
  EXPECT_TRUE(name_matches("p0.prefill.kv", "*.prefill.kv"));
  EXPECT_FALSE(name_matches("a.b.prefill.kv", "*.prefill.kv"));
  EXPECT_FALSE(name_matches(".prefill.kv", "*.prefill.kv"));
  EXPECT_FALSE(name_matches("prefill.kv", "*.prefill.kv"));
  EXPECT_TRUE(name_matches("spiffe://kv/prefill", "spiffe://kv/prefill"));
  EXPECT_FALSE(name_matches(std::string_view("engine.trial\0.evil", 18), "engine.trial"));
}

}  // namespace
}  // namespace kvferry::test
