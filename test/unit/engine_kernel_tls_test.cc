#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>

#include "engine/io/kernel_tls.h"
#include "engine/io/socket_network.h"
#include "engine/io/tls.h"
#include "test/support/secure_ends.h"

// Records that are made beneath OpenSSL: by a model of the kernel's part on every machine, and by a kernel that has
// TLS.

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

std::string from_hex(std::string_view digits) {
  const auto secret = secret_in("label random " + std::string(digits), "label");
  return secret ? std::string(secret->view()) : std::string();
}

// RFC 8448, section 3: the server's application traffic secret and what follows from it.
TEST(KernelTls, DerivesTheKeysOfTheStandardsExample) {
  const SendKeys keys = send_keys_of(from_hex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643"));
  EXPECT_EQ(keys.key.view(), from_hex("9f02283b6c9c07efc26bb9f2ac92e356"));
  EXPECT_EQ(keys.iv.view(), from_hex("cf782b88dd83549aadf1e984"));
}

TEST(KernelTls, TakesASecretOutOfOneLineAlone) {
  const auto taken = [](const char* line) { return secret_in(line, "LABEL").has_value(); };
  EXPECT_TRUE(taken("LABEL 0011 00ff"));
  for (const char* line : {"", "LABEL", "LABEL 0011", "OTHER 0011 00ff", "LABEL 0011 ", "LABEL 0011 00f",
                           "LABEL 0011 00fg", "LABELS 0011 00ff"})
    EXPECT_FALSE(taken(line)) << line;
  EXPECT_EQ(secret_in("LABEL 0011 00ff", "LABEL")->view(), std::string_view("\0\xff", 2));
}

// What the kernel does with a socket, over a stream in memory.
class RecordMaker final : public Stream {
 public:
  static constexpr size_t kRecord = size_t{16} << 10;
  explicit RecordMaker(std::unique_ptr<Stream> raw, size_t& made) : raw_(std::move(raw)), made_(made) {}

  bool encrypt_with(const SendKeys& keys) override {
    key_ = keys.key.view();
    iv_ = keys.iv.view();
    return true;
  }
  Result<size_t> write(std::span<const iovec> from) override {
    if (key_.empty()) return raw_->write(from);
    std::string bytes;
    for (const iovec& part : from) bytes.append(static_cast<const char*>(part.iov_base), part.iov_len);
    bytes.resize(std::min(bytes.size(), 4 * kRecord));  // a socket does not take everything, either
    for (size_t at = 0; at < bytes.size(); at += kRecord) {
      const std::string record = seal(bytes.substr(at, kRecord));
      const iovec all{const_cast<char*>(record.data()), record.size()};
      if (auto count = raw_->write({&all, 1}); !count.ok()) return count;
    }
    return bytes.size();
  }
  Result<size_t> read(std::span<const iovec> into) override { return raw_->read(into); }
  void set_handler(StreamHandler* handler) override { raw_->set_handler(handler); }
  void want(bool readable, bool writable) override { raw_->want(readable, writable); }
  bool torn() const override { return raw_->torn(); }
  bool has_input() const override { return raw_->has_input(); }
  void reset_on_close() override { raw_->reset_on_close(); }
  std::string peer_address() const override { return raw_->peer_address(); }

 private:
  std::string seal(std::string plain) {
    plain += '\x17';  // what it is: data
    const size_t length = plain.size() + 16;
    std::string record{'\x17', '\x03', '\x03', static_cast<char>(length >> 8), static_cast<char>(length)};
    std::string nonce = iv_;
    for (size_t i = 0; i < 8; ++i)
      nonce[11 - i] = static_cast<char>(nonce[11 - i] ^ static_cast<char>(made_here_ >> 8 * i));
    const auto raw = [](const std::string& text) { return reinterpret_cast<const unsigned char*>(text.data()); };
    std::string sealed(length, '\0');
    auto* const out = reinterpret_cast<unsigned char*>(sealed.data());
    int count = 0;
    EVP_CIPHER_CTX* const context = EVP_CIPHER_CTX_new();
    EVP_EncryptInit_ex(context, EVP_aes_128_gcm(), nullptr, raw(key_), raw(nonce));
    EVP_EncryptUpdate(context, nullptr, &count, raw(record), static_cast<int>(record.size()));
    EVP_EncryptUpdate(context, out, &count, raw(plain), static_cast<int>(plain.size()));
    EVP_EncryptFinal_ex(context, out + count, &count);
    EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, 16, out + plain.size());
    EVP_CIPHER_CTX_free(context);
    ++made_here_;
    ++made_;
    return record + sealed;
  }

  const std::unique_ptr<Stream> raw_;
  size_t& made_;
  uint64_t made_here_ = 0;
  std::string key_;
  std::string iv_;
};

class RecordsBeneath : public SecureStreamTest {
 protected:
  void SetUp() override {
    SecureStreamTest::SetUp();
    beneath_ = [this](std::unique_ptr<Stream> stream) {
      return std::make_unique<RecordMaker>(std::move(stream), made_);
    };
  }
  size_t made_ = 0;
};

TEST_F(RecordsBeneath, CarryBytesBothWays) {
  for (const AuthMode mode : {AuthMode::psk, AuthMode::mtls}) {
    made_ = 0;
    connect(keys_->of(mode), keys_->of(mode));
    const std::string up = text_of(200000, 1), down = text_of(70000, 2);
    client_->send(up, 3000);
    server_->send(down, 50000);
    pump();
    ASSERT_FALSE(client_->error) << client_->error->to_string();
    ASSERT_FALSE(server_->error) << server_->error->to_string();
    EXPECT_TRUE(server_->received == up) << server_->received.size();
    EXPECT_TRUE(client_->received == down) << client_->received.size();
    EXPECT_GE(made_, 200000 / RecordMaker::kRecord + 70000 / RecordMaker::kRecord);
  }
}

TEST_F(RecordsBeneath, AreNotMadeWhereThatIsSwitchedOff) {
  AuthConfig off = *keys_->psk();
  off.kernel_tls = false;
  connect(off, off);
  client_->send("hello", 5);
  pump();
  EXPECT_EQ(server_->received, "hello");
  EXPECT_EQ(made_, 0u);
}

TEST_F(RecordsBeneath, EndTheConnectionWhoseKeysAreWornOut) {
  bytes_per_key_ = 50000;
  connect(keys_->psk(), keys_->psk());
  const std::string up = text_of(1 << 20, 7);
  client_->send(up, 30000);
  pump();
  ASSERT_TRUE(client_->error) << server_->received.size();
  EXPECT_EQ(client_->error->code, ErrorCode::peer_lost);
  EXPECT_GE(server_->received.size(), 50000u);
  EXPECT_TRUE(up.starts_with(server_->received));
}

// A second record with a number that was used lays the key open.
TEST_F(RecordsBeneath, AreTheOnlyOnes) {
  const auto keys = context(keys_->psk());
  const SslPtr client = keys->new_connection(false, nullptr);
  SSL_set_bio(client.get(), BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
  server_ = end(keys, true);
  const auto exchange = [&] {
    std::array<char, 20000> up{};
    const int count = BIO_read(SSL_get_wbio(client.get()), up.data(), static_cast<int>(up.size()));
    if (count > 0) server_->pipe->input.append(up.data(), static_cast<size_t>(count));
    server_->pipe->pump();
    loop_.run_deferred();
    server_->pipe->pump();
    const std::string down = std::exchange(server_->pipe->output, {});
    if (!down.empty()) BIO_write(SSL_get_rbio(client.get()), down.data(), static_cast<int>(down.size()));
    return down.size();
  };
  for (int turn = 0; turn < 3; ++turn) {
    SSL_do_handshake(client.get());
    exchange();
  }
  ASSERT_EQ(SSL_is_init_finished(client.get()), 1);
  server_->send("hello", 5);
  EXPECT_GT(exchange(), 0u);
  ASSERT_EQ(made_, 1u);
  // It is to answer with new keys of its own, which OpenSSL would say with the old ones.
  ASSERT_EQ(SSL_key_update(client.get(), SSL_KEY_UPDATE_REQUESTED), 1);
  ASSERT_EQ(SSL_write(client.get(), "more", 4), 4);
  EXPECT_EQ(exchange(), 0u);
  server_->send("again", 5);
  EXPECT_GT(exchange(), 0u);
  EXPECT_EQ(made_, 2u);
  EXPECT_EQ(server_->received, "more");
  std::string words(10, '\0');
  ASSERT_EQ(SSL_read(client.get(), words.data(), 10), 5);
  ASSERT_EQ(SSL_read(client.get(), words.data() + 5, 5), 5) << "it was not made with the key that both know";
  EXPECT_EQ(words, "helloagain");
}

TEST_F(RecordsBeneath, AreReadByWhoMakesItsOwn) {
  bytes_per_key_ = 50000;  // changed by the one side, while the other reads on
  const auto both = std::exchange(beneath_, nullptr);
  server_ = end(context(keys_->psk()), true);
  beneath_ = both;
  client_ = end(context(keys_->psk()), false);
  const std::string up = text_of(150000, 3), down = text_of(400000, 4);
  client_->send(up, 3000);
  server_->send(down, 30000);
  pump();
  ASSERT_FALSE(client_->error) << client_->error->to_string();
  ASSERT_FALSE(server_->error) << server_->error->to_string();
  EXPECT_TRUE(server_->received == up);
  EXPECT_TRUE(client_->received == down);
  EXPECT_GT(made_, 0u);
}

// ---- the kernel's own

// Of /proc/net/tls_stat; none: the kernel has no TLS.
std::optional<uint64_t> connections_of_the_kernel() {
  std::ifstream file("/proc/net/tls_stat");
  std::string name;
  for (uint64_t value = 0; file >> name >> value;)
    if (name == "TlsTxSw") return value;
  return std::nullopt;
}

class KernelTlsSockets : public SecureStreamTest {
 protected:
  std::unique_ptr<End> over(std::unique_ptr<Stream> stream, bool is_server) {
    SecureStream::Parts parts{*loop_, turns_, context_, refusal_, bytes_per_key_};
    return std::make_unique<End>(std::make_unique<SecureStream>(std::move(stream), std::move(parts), is_server),
                                 nullptr);
  }
  void connect_sockets(const AuthConfig& auth) {
    context_ = context(auth);
    listener_ = std::move(network_.listen(Address{"127.0.0.1", 0}, [this](std::unique_ptr<Stream> stream) {
                  server_ = over(std::move(stream), true);
                })).value();
    client_ = over(std::move(network_.dial(listener_->address())).value(), false);
    ASSERT_TRUE(turn_until([&] { return server_ != nullptr; }));
  }
  template <class Condition>
  bool turn_until(const Condition& condition) {
    const TimePoint end = loop_->now() + seconds(60);
    while (!condition() && loop_->now() < end) loop_->run_once(loop_->now() + milliseconds(10), nothing_pending_);
    return condition();
  }

  std::atomic<size_t> nothing_pending_{0};
  std::unique_ptr<EpollLoop> loop_ = std::move(EpollLoop::create(std::make_shared<SystemClock>())).value();
  HandshakeTurns turns_{*loop_};
  SocketNetwork network_{*loop_, SocketOptions{}};
  std::shared_ptr<const TlsContext> context_;
  std::unique_ptr<Listener> listener_;
};

TEST_F(KernelTlsSockets, CarryBytesBothWays) {
  for (const AuthMode mode : {AuthMode::psk, AuthMode::mtls})
    for (const bool wanted : {true, false}) {
      const auto before = connections_of_the_kernel();
      AuthConfig auth = *keys_->of(mode);
      auth.kernel_tls = wanted;
      connect_sockets(auth);
      const std::string up = text_of(600000, 1), down = text_of(200000, 2);
      client_->send(up, 3000);
      server_->send(down, 50000);
      client_->read_span = server_->read_span = 20000;
      ASSERT_TRUE(turn_until([&] {
        return client_->error || server_->error ||
               (server_->received.size() == up.size() && client_->received.size() == down.size());
      }));
      ASSERT_FALSE(client_->error) << client_->error->to_string();
      ASSERT_FALSE(server_->error) << server_->error->to_string();
      EXPECT_TRUE(server_->received == up);
      EXPECT_TRUE(client_->received == down);
      if (before) {
        EXPECT_EQ(*connections_of_the_kernel() - *before, wanted ? 2u : 0u);
      }
      client_.reset();
      server_.reset();
    }
  if (!connections_of_the_kernel()) GTEST_SKIP() << "this kernel has no TLS (module tls): OpenSSL has made the records";
}

}  // namespace
}  // namespace kvferry::test
