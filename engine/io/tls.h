#pragma once

#include <openssl/ssl.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "common/secret.h"
#include "engine/config.h"

namespace kvferry {

template <auto Free>
struct OpensslDeleter {
  template <class T>
  void operator()(T* object) const {
    Free(object);
  }
};
using SslPtr = std::unique_ptr<SSL, OpensslDeleter<SSL_free>>;
using SslContextPtr = std::unique_ptr<SSL_CTX, OpensslDeleter<SSL_CTX_free>>;
using SslSessionPtr = std::unique_ptr<SSL_SESSION, OpensslDeleter<SSL_SESSION_free>>;

// Takes what OpenSSL has queued for this thread as the cause of an Error; "" when there is nothing.
std::string take_openssl_cause();

// The keys and rules of one mode as they were read at one moment: TLS 1.3 alone, no resumption, no early data, no
// renegotiation; both sides authenticate. Immutable; connections hold the one that they began with.
class TlsContext {
 public:
  // AES-GCM may protect 2^24.5 records of 16 KiB under one key (RFC 8446, 5.5).
  static constexpr uint64_t kBytesPerKey = uint64_t{64} << 30;
  // Of a key that cannot be changed: then the connection ends.
  static constexpr uint64_t kKeysOfTheKernel = 4;

  // Reads every file that `config` names. REQUIRES: config.mode != open.
  static Result<std::shared_ptr<const TlsContext>> load(const AuthConfig& config);
  ~TlsContext();

  AuthMode mode() const { return mode_; }
  // Where the kernel may make records, `send_secret`, which outlives the connection, gets the secret of those that are
  // sent, before the handshake ends.
  SslPtr new_connection(bool is_server, Secret* send_secret) const;
  // Behind a handshake that OpenSSL found good: whether the other side was authenticated by this mode's own means.
  Status check_peer(SSL* ssl) const;
  size_t keys() const { return keys_.size(); }

 private:
  struct PresharedKey {
    std::string identity;  // of the key, not the key
    Secret key;
  };
  explicit TlsContext(const AuthConfig& config) : mode_(config.mode), peer_names_(config.peer_names) {}
  Status set_up(const AuthConfig& config);
  Status use_keys(const std::string& path);
  Status use_certificates(const AuthConfig& config);
  bool names_allowed(X509* certificate) const;
  static SslSessionPtr session_of(SSL* ssl, const PresharedKey& key);

  // OpenSSL's callbacks.
  static const TlsContext& of(const SSL* ssl);
  static int find_session(SSL* ssl, const unsigned char* identity, size_t length, SSL_SESSION** session);
  static int use_session(SSL* ssl, const EVP_MD* digest, const unsigned char** identity, size_t* length,
                         SSL_SESSION** session);
  static void on_secret(const SSL* ssl, const char* line);
  static int on_client_hello(SSL* ssl, int* alert, void* self);
  static int verify(int ok, X509_STORE_CTX* store);

  const AuthMode mode_;
  const std::vector<std::string> peer_names_;
  std::string protocols_;  // ALPN: the mode is agreed on before anything is computed
  std::vector<PresharedKey> keys_;
  SslContextPtr context_;
};

// Whether one of a certificate's names is what `allowed` says: equal but for case, or one label more than "*.x".
bool name_matches(std::string_view name, std::string_view allowed);

}  // namespace kvferry
