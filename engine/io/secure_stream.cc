#include "engine/io/secure_stream.h"

#include <fmt/format.h>
#include <openssl/err.h>

#include <algorithm>

#include "engine/io/kernel_tls.h"
#include "engine/io/part_cursor.h"

namespace kvferry {
namespace {

constexpr unsigned char kHandshakeRecord = 22;
constexpr unsigned char kAlertRecord = 21;
constexpr uint16_t kAes128Gcm = 0x1301;           // TLS_AES_128_GCM_SHA256
constexpr size_t kMaxOutgoing = size_t{1} << 20;  // of what OpenSSL sends by itself; more is no peer of ours

// Where spans smaller than a record are gathered and scattered. On loop only, and engines' loops are of one thread
// each.
std::array<std::byte, size_t{16} << 10>& scratch() {
  static thread_local std::array<std::byte, size_t{16} << 10> bytes;
  return bytes;
}

}  // namespace

// ---- HandshakeTurns

void HandshakeTurns::add(SecureStream& stream) {
  if (std::find(waiting_.begin(), waiting_.end(), &stream) == waiting_.end()) waiting_.push_back(&stream);
  schedule();
}

void HandshakeTurns::remove(SecureStream& stream) {
  std::erase(waiting_, &stream);
}

void HandshakeTurns::schedule() {
  if (std::exchange(scheduled_, true)) return;
  loop_.defer([this, alive = alive_] {
    if (*alive) run();
  });
}

void HandshakeTurns::run() {
  scheduled_ = false;
  for (size_t step = 0; step < kStepsPerTurn && !waiting_.empty(); ++step) {
    SecureStream& next = *waiting_.front();
    waiting_.pop_front();
    next.shake_hands();
  }
  if (!waiting_.empty()) schedule();
}

// ---- beneath OpenSSL

BIO_METHOD* SecureStream::bio_method() {
  static const std::unique_ptr<BIO_METHOD, OpensslDeleter<BIO_meth_free>> method = [] {
    std::unique_ptr<BIO_METHOD, OpensslDeleter<BIO_meth_free>> made(
        BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "kvferry stream"));
    KVF_CHECK(made);
    BIO_meth_set_read(made.get(), &SecureStream::bio_read);
    BIO_meth_set_write(made.get(), &SecureStream::bio_write);
    BIO_meth_set_ctrl(made.get(), [](BIO*, int command, long, void*) -> long { return command == BIO_CTRL_FLUSH; });
    return made;
  }();
  return method.get();
}

int SecureStream::bio_read(BIO* bio, char* into, int length) {
  BIO_clear_retry_flags(bio);
  const int count = static_cast<SecureStream*>(BIO_get_data(bio))->receive(into, static_cast<size_t>(length));
  if (count == 0) BIO_set_retry_read(bio);
  return count > 0 ? count : -1;
}

// Takes everything: write() stops at kMaxQueued, and the handshake's messages are few.
int SecureStream::bio_write(BIO* bio, const char* from, int length) {
  auto& self = *static_cast<SecureStream*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  // Then not even an alert leaves: the other side sees the connection end.
  if (self.encrypted_beneath_ || self.queued() > kMaxOutgoing) return -1;
  self.out_.append(from, static_cast<size_t>(length));
  return length;
}

int SecureStream::receive(char* into, size_t length) {
  if (raw_error_) return -1;
  const iovec room{into, length};
  auto count = raw_->read({&room, 1});
  if (!count) {
    raw_error_ = std::move(count).error();
    return -1;
  }
  if (*count > 0 && !std::exchange(checked_first_byte_, true) && !looks_like_tls(static_cast<unsigned char>(into[0])))
    return -1;
  return static_cast<int>(*count);
}

// The modes do not match: each side is told what it has to deal with.
bool SecureStream::looks_like_tls(unsigned char first) {
  if (first == kHandshakeRecord || first == kAlertRecord) return true;
  if (is_server_ && first == 'K') {
    out_ += parts_.plain_refusal;
    raw_error_ = Error{ErrorCode::permission_denied, fmt::format("the peer's auth mode is open, this engine's is {}",
                                                                 to_string(parts_.context->mode()))};
  } else if (is_server_) {
    raw_error_ = Error{ErrorCode::protocol, "a stranger: it does not speak kvferry's protocol"};
  } else {
    raw_error_ = Error{ErrorCode::permission_denied,
                       fmt::format("the peer answers in the clear: its auth mode is open, or it is "
                                   "no kvferry engine; this engine's is {}",
                                   to_string(parts_.context->mode()))};
  }
  return false;
}

// ---- the stream

SecureStream::SecureStream(std::unique_ptr<Stream> raw, Parts parts, bool is_server)
    : raw_(std::move(raw)),
      parts_(std::move(parts)),
      is_server_(is_server),
      ssl_(parts_.context->new_connection(is_server, &send_secret_)) {
  BIO* const bio = BIO_new(bio_method());
  KVF_CHECK(bio != nullptr);
  BIO_set_data(bio, this);
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl_.get(), bio, bio);
  raw_->set_handler(this);
  raw_->want(is_server_, false);
  if (!is_server_) parts_.turns.add(*this);
}

SecureStream::~SecureStream() {
  *alive_ = false;
  parts_.turns.remove(*this);
  raw_->set_handler(nullptr);
}

void SecureStream::set_handler(StreamHandler* handler) {
  handler_ = handler;
  poke_if_needed();
}

void SecureStream::want(bool readable, bool writable) {
  want_read_ = readable;
  want_write_ = writable;
  update_interest();
  poke_if_needed();
}

void SecureStream::update_interest() {
  if (failure_) return raw_->want(false, false);
  const bool wants_to_write = queued() > 0 || (established_ && want_write_);
  raw_->want(established_ ? want_read_ : true, wants_to_write);
}

bool SecureStream::has_news() const {
  return handler_ != nullptr && ((want_read_ && holds_input()) || (want_write_ && failure_));
}

// What is held here does not show beneath: the handler is called from a turn of its own.
void SecureStream::poke_if_needed() {
  if (poking_ || !has_news()) return;
  poking_ = true;
  parts_.loop.defer([this, alive = alive_] {
    if (!*alive) return;
    poking_ = false;
    if (has_news()) handler_->on_stream_ready(want_read_, failure_ && want_write_);
    if (*alive) poke_if_needed();
  });
}

void SecureStream::on_stream_ready(bool readable, bool writable) {
  if (writable) flush();
  if (!established_ && !failure_) {
    if (readable) {
      raw_->want(false, queued() > 0);  // until its turn
      parts_.turns.add(*this);
    }
    return;
  }
  update_interest();
  const bool may_write = writable && want_write_ && queued() < kMaxQueued;
  if (handler_ != nullptr && ((readable && want_read_) || may_write)) handler_->on_stream_ready(readable, may_write);
}

void SecureStream::fail(Error error) {
  if (failure_) return;
  if (error.peer.empty()) error.peer = peer_address();
  failure_ = std::move(error);
  flush();  // an alert, or a refusal
  update_interest();
  poke_if_needed();
}

// ---- the handshake

void SecureStream::shake_hands() {
  if (established_ || failure_) return;
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_.get());
  if (result != 1 && SSL_get_error(ssl_.get(), result) != SSL_ERROR_WANT_READ) return fail(handshake_error(result));
  if (result == 1) {
    if (Status status = parts_.context->check_peer(ssl_.get()); !status.ok()) return fail(std::move(status).error());
    established_ = true;
    starved_ = false;
  }
  flush();
  if (established_) let_the_kernel_encrypt();
  update_interest();
  poke_if_needed();
}

// Now or never: every record of OpenSSL's has left, and none was made with the key of data yet.
void SecureStream::let_the_kernel_encrypt() {
  const Secret secret = std::move(send_secret_);
  if (secret.view().empty() || failure_ || queued() > 0) return;
  if (SSL_CIPHER_get_protocol_id(SSL_get_current_cipher(ssl_.get())) != kAes128Gcm) return;
  encrypted_beneath_ = raw_->encrypt_with(send_keys_of(secret.view()));
}

Error SecureStream::handshake_error(int) {
  if (raw_error_) return *raw_error_;
  const unsigned long code = ERR_peek_error();
  const int reason = ERR_GET_REASON(code);
  const bool is_alert = ERR_GET_LIB(code) == ERR_LIB_SSL && reason >= SSL_AD_REASON_OFFSET;
  const std::string cause = take_openssl_cause();
  if (is_alert) {
    Error error = refused_by_peer();
    error.cause = cause;
    if (reason - SSL_AD_REASON_OFFSET == SSL_AD_NO_APPLICATION_PROTOCOL)
      error.message = fmt::format("the peer's auth mode is not {}", to_string(parts_.context->mode()));
    return error;
  }
  const long verdict = SSL_get_verify_result(ssl_.get());
  if (verdict == X509_V_ERR_HOSTNAME_MISMATCH)
    return Error{ErrorCode::permission_denied, "the peer's certificate carries none of the allowed names"};
  if (verdict != X509_V_OK)
    return Error{ErrorCode::permission_denied, "the peer's certificate is not accepted",
                 X509_verify_cert_error_string(verdict)};
  if (is_server_ && ERR_GET_LIB(code) == ERR_LIB_SSL && reason == SSL_R_CALLBACK_FAILED)
    return Error{ErrorCode::permission_denied,
                 fmt::format("the peer's auth mode is not {}", to_string(parts_.context->mode()))};
  return Error{ErrorCode::permission_denied, "the handshake failed", cause};
}

Error SecureStream::refused_by_peer() const {
  return Error{ErrorCode::permission_denied, parts_.context->mode() == AuthMode::psk
                                                 ? "the peer does not accept this engine's secret"
                                                 : "the peer does not accept this engine's certificate"};
}

// ---- bytes

std::optional<size_t> SecureStream::decrypt(void* into, size_t length) {
  ERR_clear_error();
  size_t count = 0;
  const int result = SSL_read_ex(ssl_.get(), into, length, &count);
  if (result == 1) {
    starved_ = false;
    return count;
  }
  const int code = SSL_get_error(ssl_.get(), result);
  if (code == SSL_ERROR_WANT_READ) {
    starved_ = true;
    return std::nullopt;
  }
  if (raw_error_)
    fail(*raw_error_);
  else if (code == SSL_ERROR_ZERO_RETURN)
    fail(Error{ErrorCode::peer_lost, "connection closed by the other side"});
  else if (const int reason = ERR_GET_REASON(ERR_peek_error()); reason >= SSL_AD_REASON_OFFSET) {
    // TLS 1.3: a client hears only behind its own handshake that the server refuses it.
    Error error = refused_by_peer();
    error.cause = take_openssl_cause();
    fail(std::move(error));
  } else
    fail(Error{ErrorCode::protocol, "what arrived was not encrypted by the peer", take_openssl_cause()});
  return std::nullopt;
}

Result<size_t> SecureStream::read(std::span<const iovec> into) {
  if (failure_) return *failure_;
  if (!established_) return size_t{0};
  PartCursor cursor{into};
  size_t moved = 0;
  while (!cursor.end()) {
    const bool scattered = cursor.here() < kSmallSpan && cursor.index + 1 < into.size();
    const size_t room = scattered ? cursor.small_run(kRecord, kSmallSpan) : cursor.here();
    const auto count = decrypt(scattered ? scratch().data() : cursor.at(), room);
    if (!count) break;
    scattered ? cursor.scatter(scratch().data(), *count) : cursor.advance(*count);
    moved += *count;
  }
  if (queued() > 0) flush();  // an answer to the peer's change of keys
  if (moved == 0 && failure_) return *failure_;
  poke_if_needed();
  return moved;
}

bool SecureStream::encrypt(const void* from, size_t length, size_t& moved) {
  ERR_clear_error();
  if (sent_with_key_ >= parts_.bytes_per_key) {
    sent_with_key_ = 0;
    if (SSL_key_update(ssl_.get(), SSL_KEY_UPDATE_NOT_REQUESTED) != 1)
      return fail(Error{ErrorCode::internal, "cannot change the keys of a connection", take_openssl_cause()}), false;
  }
  if (SSL_write_ex(ssl_.get(), from, length, &moved) != 1)
    return fail(Error{ErrorCode::peer_lost, "cannot encrypt for the connection", take_openssl_cause()}), false;
  sent_with_key_ += moved;
  return true;
}

// The key cannot be changed there (Linux before 6.14): a connection that has worn it out ends as if broken.
Result<size_t> SecureStream::write_beneath(std::span<const iovec> from) {
  if (sent_with_key_ >= parts_.bytes_per_key * TlsContext::kKeysOfTheKernel) {
    fail(Error{ErrorCode::peer_lost, "the keys of the connection are worn out"});
    return *failure_;
  }
  auto count = raw_->write(from);
  if (!count) {
    fail(std::move(count).error());
    return *failure_;
  }
  sent_with_key_ += *count;
  return *count;
}

Result<size_t> SecureStream::write(std::span<const iovec> from) {
  if (failure_) return *failure_;
  if (!established_) return size_t{0};
  if (encrypted_beneath_) return write_beneath(from);
  PartCursor cursor{from};
  size_t moved = 0;
  while (!cursor.end() && !failure_) {
    if (queued() >= kMaxQueued) {
      flush();
      if (queued() >= kMaxQueued) break;
    }
    size_t count = 0;
    const bool direct = cursor.here() >= kRecord || cursor.index + 1 == from.size();
    const bool encrypted = direct ? encrypt(cursor.at(), std::min(cursor.here(), kRecord), count)
                                  : encrypt(scratch().data(), cursor.gather(scratch().data(), kRecord), count);
    if (!encrypted) break;
    cursor.advance(count);
    moved += count;
  }
  flush();
  update_interest();
  if (moved == 0 && failure_) return *failure_;
  return moved;
}

void SecureStream::flush() {
  while (queued() > 0) {
    const iovec rest{out_.data() + out_sent_, queued()};
    auto count = raw_->write({&rest, 1});
    if (!count) {
      if (!failure_) failure_ = std::move(count).error();
      out_.clear();
      out_sent_ = 0;
      return poke_if_needed();
    }
    if (*count == 0) break;
    out_sent_ += *count;
  }
  if (queued() == 0) {
    out_.clear();
    out_sent_ = 0;
    if (!want_write_ && out_.capacity() > kRecord) out_.shrink_to_fit();
  } else if (out_sent_ > out_.size() / 2) {
    out_.erase(0, out_sent_);
    out_sent_ = 0;
  }
}

}  // namespace kvferry
