#pragma once

#include <array>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "engine/io/loop.h"
#include "engine/io/stream.h"
#include "engine/io/tls.h"

namespace kvferry {

class SecureStream;

// Handshakes take turns: a few steps each turn of the loop, however many connections are in the middle of one, so that
// their arithmetic (tens of microseconds a step, 1 ms with RSA) does not hold up those that stand (I7). On loop only.
class HandshakeTurns {
 public:
  static constexpr size_t kStepsPerTurn = 2;
  explicit HandshakeTurns(Loop& loop) : loop_(loop) {}
  ~HandshakeTurns() { *alive_ = false; }
  void add(SecureStream& stream);
  void remove(SecureStream& stream);

 private:
  void run();
  void schedule();

  Loop& loop_;
  std::deque<SecureStream*> waiting_;
  bool scheduled_ = false;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

// TLS over any byte stream; looks to its owner like the stream beneath, which may be a socket's or the simulator's.
//
// Nothing is read or written before the handshake has proven the peer; then spans of whatever size are gathered into
// records of 16 KiB. What is held here is bounded (I6): 128 KiB and a record to send, 64 KiB received, and nothing of
// either while it is idle. What was accepted by write() has left as far as the caller is concerned, as in a socket.
//
// I4: torn() asks the stream beneath, so that what was received and not yet read is not applied once the other side has
// reset the connection. On loop only.
//
// Where the kernel makes the records (Stream::encrypt_with), that begins behind the handshake and is for good: what is
// written goes to the stream beneath as it is, and what arrives is decrypted here.
class SecureStream final : public Stream, private StreamHandler {
 public:
  // Everything but `context` outlives the stream.
  struct Parts {
    Loop& loop;
    HandshakeTurns& turns;
    std::shared_ptr<const TlsContext> context;
    const std::string& plain_refusal;  // said to who does not speak TLS but kvferry's protocol
    uint64_t bytes_per_key = TlsContext::kBytesPerKey;
  };
  SecureStream(std::unique_ptr<Stream> raw, Parts parts, bool is_server);
  ~SecureStream() override;

  void set_handler(StreamHandler* handler) override;
  void want(bool readable, bool writable) override;
  Result<size_t> read(std::span<const iovec> into) override;
  Result<size_t> write(std::span<const iovec> from) override;
  bool torn() const override { return failure_.has_value() || raw_->torn(); }
  bool has_input() const override { return holds_input() || raw_->has_input(); }
  void reset_on_close() override { raw_->reset_on_close(); }
  std::string peer_address() const override { return raw_->peer_address(); }

 private:
  friend class HandshakeTurns;
  static constexpr size_t kRecord = size_t{16} << 10;
  static constexpr size_t kMaxQueued = size_t{128} << 10;
  static constexpr size_t kSmallSpan = size_t{2} << 10;  // read by way of a record's room: a call each would cost more

  void on_stream_ready(bool readable, bool writable) override;
  void shake_hands();
  void let_the_kernel_encrypt();
  void fail(Error error);
  Error handshake_error(int code);
  Error refused_by_peer() const;
  // Beneath OpenSSL: moves ciphertext.
  static BIO_METHOD* bio_method();
  static int bio_read(BIO* bio, char* into, int length);
  static int bio_write(BIO* bio, const char* from, int length);
  int receive(char* into, size_t length);
  bool looks_like_tls(unsigned char first);

  // Plaintext into one contiguous room; nothing: no more can be had now.
  std::optional<size_t> decrypt(void* into, size_t length);
  bool encrypt(const void* from, size_t length, size_t& moved);
  Result<size_t> write_beneath(std::span<const iovec> from);
  void flush();
  size_t queued() const { return out_.size() - out_sent_; }
  // Whether read() would move something without a byte from beneath.
  bool holds_input() const {
    return failure_.has_value() || (established_ && !starved_ && SSL_has_pending(ssl_.get()));
  }
  void update_interest();
  bool has_news() const;
  void poke_if_needed();

  const std::unique_ptr<Stream> raw_;
  Parts parts_;
  const bool is_server_;
  SslPtr ssl_;
  bool established_ = false;
  bool checked_first_byte_ = false;
  bool starved_ = true;  // OpenSSL waits for more from beneath
  bool poking_ = false;
  std::optional<Error> failure_;    // from here on every read and write
  std::optional<Error> raw_error_;  // of the stream beneath, on its way through OpenSSL
  std::string out_;                 // ciphertext
  size_t out_sent_ = 0;
  uint64_t sent_with_key_ = 0;
  Secret send_secret_;              // only during the handshake
  bool encrypted_beneath_ = false;  // OpenSSL's part is reading alone: a second record of a number would break the key

  StreamHandler* handler_ = nullptr;
  bool want_read_ = false;
  bool want_write_ = false;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvferry
