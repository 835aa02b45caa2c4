#include "engine/io/tls.h"

#include <openssl/err.h>
#include <openssl/kdf.h>
#include <openssl/x509v3.h>
#include <strings.h>

#include <algorithm>
#include <array>

#include "common/bytes.h"
#include "common/check.h"
#include "engine/io/kernel_tls.h"

namespace kvferry {
namespace {

constexpr size_t kShortestSecret = 16;
constexpr size_t kMaxKeys = 16;
constexpr size_t kKeyBytes = 32;
constexpr size_t kReadAhead = size_t{64} << 10;
// Both hash with SHA-256, which a preshared key is bound to.
constexpr const char* kSuites = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";
constexpr unsigned char kFirstSuite[] = {0x13, 0x01};
constexpr unsigned char kSessionContext[] = {'k', 'v', 'f', 'e', 'r', 'r', 'y'};

// HKDF with SHA-256: one purpose's bytes out of a secret of any length.
Secret derive(std::string_view secret, std::string_view purpose, size_t bytes) {
  const std::unique_ptr<EVP_PKEY_CTX, OpensslDeleter<EVP_PKEY_CTX_free>> hkdf(
      EVP_PKEY_CTX_new_id(EVP_PKEY_HKDF, nullptr));
  constexpr std::string_view kSalt = "kvferry psk 1";
  const auto raw = [](std::string_view text) { return reinterpret_cast<const unsigned char*>(text.data()); };
  const auto size = [](std::string_view text) { return static_cast<int>(text.size()); };
  Secret out;
  auto* const room = reinterpret_cast<unsigned char*>(out.resize(bytes));
  size_t length = bytes;
  KVF_CHECK(hkdf && EVP_PKEY_derive_init(hkdf.get()) == 1 && EVP_PKEY_CTX_set_hkdf_md(hkdf.get(), EVP_sha256()) == 1 &&
            EVP_PKEY_CTX_set1_hkdf_salt(hkdf.get(), raw(kSalt), size(kSalt)) == 1 &&
            EVP_PKEY_CTX_set1_hkdf_key(hkdf.get(), raw(secret), size(secret)) == 1 &&
            EVP_PKEY_CTX_add1_hkdf_info(hkdf.get(), raw(purpose), size(purpose)) == 1 &&
            EVP_PKEY_derive(hkdf.get(), room, &length) == 1 && length == bytes);
  return out;
}

// ALPN's wire form of one protocol.
std::string protocol_of(AuthMode mode) {
  const std::string name = "kvferry/1 " + std::string(to_string(mode));
  return static_cast<char>(name.size()) + name;
}

Error tls_error(ErrorCode code, std::string message) {
  return Error{code, std::move(message), take_openssl_cause()};
}

}  // namespace

std::string take_openssl_cause() {
  std::string cause;
  while (const unsigned long code = ERR_get_error()) {
    const char* const reason = ERR_reason_error_string(code);
    if (cause.empty()) cause = reason != nullptr ? reason : "OpenSSL error " + std::to_string(code);
  }
  return cause;
}

bool name_matches(std::string_view name, std::string_view allowed) {
  if (allowed.starts_with("*.")) {
    const size_t dot = name.find('.');
    if (dot == std::string_view::npos || dot == 0) return false;
    name.remove_prefix(dot);
    allowed.remove_prefix(1);
  }
  return name.size() == allowed.size() && ::strncasecmp(name.data(), allowed.data(), name.size()) == 0;
}

Result<std::shared_ptr<const TlsContext>> TlsContext::load(const AuthConfig& config) {
  ERR_clear_error();
  const std::shared_ptr<TlsContext> made(new TlsContext(config));
  KVF_RETURN_IF_ERROR(made->set_up(config));
  return std::shared_ptr<const TlsContext>(made);
}

TlsContext::~TlsContext() = default;

Status TlsContext::set_up(const AuthConfig& config) {
  KVF_CHECK(mode_ != AuthMode::open);
  context_.reset(SSL_CTX_new(TLS_method()));
  SSL_CTX* const context = context_.get();
  if (context == nullptr) return tls_error(ErrorCode::internal, "cannot set up TLS");
  protocols_ = protocol_of(mode_);
  SSL_CTX_set_app_data(context, this);
  SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_CIPHER_SERVER_PREFERENCE);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                SSL_MODE_RELEASE_BUFFERS);  // an idle connection holds no buffers
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_read_ahead(context, 1);
  SSL_CTX_set_default_read_buffer_len(context, kReadAhead);
  SSL_CTX_set_max_cert_list(context, long{64} << 10);
  SSL_CTX_set_client_hello_cb(context, on_client_hello, this);
  if (config.kernel_tls) SSL_CTX_set_keylog_callback(context, on_secret);
  // Also where certificates are not asked for: a server that shows one instead of the key is refused for it.
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, verify);
  const bool ok = SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) == 1 &&
                  SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) == 1 &&
                  SSL_CTX_set_ciphersuites(context, kSuites) == 1 &&
                  SSL_CTX_set_session_id_context(context, kSessionContext, sizeof kSessionContext) == 1 &&
                  SSL_CTX_set1_groups_list(context, "X25519:P-256") == 1 && SSL_CTX_set_num_tickets(context, 0) == 1 &&
                  SSL_CTX_set_alpn_protos(context, reinterpret_cast<const unsigned char*>(protocols_.data()),
                                          static_cast<unsigned>(protocols_.size())) == 0;
  if (!ok) return tls_error(ErrorCode::unsupported, "this OpenSSL cannot do what kvferry needs of TLS 1.3");
  return mode_ == AuthMode::psk ? use_keys(config.psk_file) : use_certificates(config);
}

// ---- psk

Status TlsContext::use_keys(const std::string& path) {
  KVF_ASSIGN_OR_RETURN(const Secret content, read_secret_file(path));
  std::string_view rest = content.view();
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ' || line.back() == '\t')) line.remove_suffix(1);
    if (line.empty() || line.front() == '#') continue;
    if (line.size() < kShortestSecret)
      return Error{ErrorCode::invalid_argument, "a secret in " + path + " is shorter than 16 bytes",
                   "openssl rand -base64 32 makes a good one"};
    if (keys_.size() == kMaxKeys)
      return Error{ErrorCode::invalid_argument, path + " holds more than " + std::to_string(kMaxKeys) + " secrets"};
    keys_.push_back({to_hex(derive(line, "identity", 8).view()), derive(line, "key", kKeyBytes)});
  }
  if (keys_.empty()) return Error{ErrorCode::invalid_argument, "there is no secret in " + path};
  SSL_CTX_set_psk_find_session_callback(context_.get(), find_session);
  SSL_CTX_set_psk_use_session_callback(context_.get(), use_session);
  return {};
}

SslSessionPtr TlsContext::session_of(SSL* ssl, const PresharedKey& key) {
  SslSessionPtr session(SSL_SESSION_new());
  const SSL_CIPHER* const suite = SSL_CIPHER_find(ssl, kFirstSuite);
  const auto* const bytes = reinterpret_cast<const unsigned char*>(key.key.view().data());
  const bool ok = session && suite != nullptr && SSL_SESSION_set1_master_key(session.get(), bytes, kKeyBytes) == 1 &&
                  SSL_SESSION_set1_id_context(session.get(), kSessionContext, sizeof kSessionContext) == 1 &&
                  SSL_SESSION_set_cipher(session.get(), suite) == 1 &&
                  SSL_SESSION_set_protocol_version(session.get(), TLS1_3_VERSION) == 1;
  return ok ? std::move(session) : nullptr;
}

const TlsContext& TlsContext::of(const SSL* ssl) {
  return *static_cast<const TlsContext*>(SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl)));
}

// An identity that is not known gets no session, and then there is no certificate either: the handshake fails.
int TlsContext::find_session(SSL* ssl, const unsigned char* identity, size_t length, SSL_SESSION** session) {
  *session = nullptr;
  const std::string_view wanted(reinterpret_cast<const char*>(identity), length);
  for (const PresharedKey& key : of(ssl).keys_)
    if (key.identity == wanted) *session = session_of(ssl, key).release();
  return 1;
}

int TlsContext::use_session(SSL* ssl, const EVP_MD* digest, const unsigned char** identity, size_t* length,
                            SSL_SESSION** session) {
  *session = nullptr;
  if (digest != nullptr && EVP_MD_get_type(digest) != NID_sha256) return 1;
  const PresharedKey& key = of(ssl).keys_.front();
  *identity = reinterpret_cast<const unsigned char*>(key.identity.data());
  *length = key.identity.size();
  *session = session_of(ssl, key).release();
  return *session != nullptr ? 1 : 0;
}

// ---- mtls

Status TlsContext::use_certificates(const AuthConfig& config) {
  SSL_CTX* const context = context_.get();
  KVF_ASSIGN_OR_RETURN(const Secret key, read_secret_file(config.key_file));
  const std::unique_ptr<BIO, OpensslDeleter<BIO_free>> bio(
      BIO_new_mem_buf(key.view().data(), static_cast<int>(key.view().size())));
  const auto no_passphrase = [](char*, int, int, void*) { return 0; };  // instead of a question on the terminal
  const std::unique_ptr<EVP_PKEY, OpensslDeleter<EVP_PKEY_free>> parsed(
      PEM_read_bio_PrivateKey(bio.get(), nullptr, no_passphrase, nullptr));
  if (!parsed) return tls_error(ErrorCode::invalid_argument, "there is no usable key in " + config.key_file);
  if (SSL_CTX_use_certificate_chain_file(context, config.certificate_file.c_str()) != 1)
    return tls_error(ErrorCode::invalid_argument, "there is no usable certificate in " + config.certificate_file);
  if (SSL_CTX_use_PrivateKey(context, parsed.get()) != 1 || SSL_CTX_check_private_key(context) != 1)
    return tls_error(ErrorCode::invalid_argument,
                     config.key_file + " is not the key of the certificate in " + config.certificate_file);
  if (SSL_CTX_load_verify_file(context, config.ca_file.c_str()) != 1)
    return tls_error(ErrorCode::invalid_argument, "there is no usable certificate in " + config.ca_file);
  return {};
}

bool TlsContext::names_allowed(X509* certificate) const {
  const std::unique_ptr<GENERAL_NAMES, OpensslDeleter<GENERAL_NAMES_free>> names(
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
  for (int i = 0; names && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    int type = 0;
    const auto* const value =
        static_cast<const ASN1_STRING*>(GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(names.get(), i), &type));
    if (type != GEN_DNS && type != GEN_URI) continue;
    const std::string_view name(reinterpret_cast<const char*>(ASN1_STRING_get0_data(value)),
                                static_cast<size_t>(ASN1_STRING_length(value)));
    for (const std::string& allowed : peer_names_)
      if (name_matches(name, allowed)) return true;
  }
  return false;
}

int TlsContext::verify(int ok, X509_STORE_CTX* store) {
  if (ok != 1 || X509_STORE_CTX_get_error_depth(store) != 0) return ok;
  const auto* const ssl =
      static_cast<const SSL*>(X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx()));
  if (of(ssl).names_allowed(X509_STORE_CTX_get_current_cert(store))) return 1;
  X509_STORE_CTX_set_error(store, X509_V_ERR_HOSTNAME_MISMATCH);
  return 0;
}

// ---- connections

// Refuses who does not name this protocol and this mode, before anything is computed for it.
int TlsContext::on_client_hello(SSL* ssl, int* alert, void* self) {
  const std::string& wanted = static_cast<const TlsContext*>(self)->protocols_;
  const unsigned char* bytes = nullptr;
  size_t length = 0;
  *alert = SSL_AD_NO_APPLICATION_PROTOCOL;
  if (SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_application_layer_protocol_negotiation, &bytes, &length) != 1)
    return SSL_CLIENT_HELLO_ERROR;
  const std::string_view offered(reinterpret_cast<const char*>(bytes), length);
  return offered.size() == wanted.size() + 2 && offered.substr(2) == wanted ? SSL_CLIENT_HELLO_SUCCESS
                                                                            : SSL_CLIENT_HELLO_ERROR;
}

// OpenSSL tells the secrets of a connection as it makes them, for whoever is to read along.
void TlsContext::on_secret(const SSL* ssl, const char* line) {
  auto* const wanted = static_cast<Secret*>(SSL_get_app_data(ssl));
  auto secret = secret_in(line, SSL_is_server(ssl) ? "SERVER_TRAFFIC_SECRET_0" : "CLIENT_TRAFFIC_SECRET_0");
  if (wanted != nullptr && secret) *wanted = std::move(*secret);
}

SslPtr TlsContext::new_connection(bool is_server, Secret* send_secret) const {
  SslPtr ssl(SSL_new(context_.get()));
  KVF_CHECK(ssl);
  SSL_set_app_data(ssl.get(), send_secret);
  is_server ? SSL_set_accept_state(ssl.get()) : SSL_set_connect_state(ssl.get());
  return ssl;
}

Status TlsContext::check_peer(SSL* ssl) const {
  const bool good = mode_ == AuthMode::psk
                        ? SSL_session_reused(ssl) == 1 && SSL_get0_peer_certificate(ssl) == nullptr
                        : SSL_get0_peer_certificate(ssl) != nullptr && SSL_get_verify_result(ssl) == X509_V_OK &&
                              SSL_session_reused(ssl) == 0;
  if (good && SSL_version(ssl) == TLS1_3_VERSION) return {};
  return Error{ErrorCode::permission_denied, "the peer has not proven who it is"};
}

}  // namespace kvferry
