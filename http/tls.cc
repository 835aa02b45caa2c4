#include "http/tls.h"

#include <openssl/ssl.h>

#include "common/secret.h"

namespace kvferry::http {
namespace {

using boost::system::error_code;

Error unusable(const std::string& what, const std::string& path, const error_code& error) {
  return {ErrorCode::invalid_argument, "cannot use the " + what + " " + path, error.message(), "", "http"};
}

void set_versions(TlsContext& context) {
  SSL_CTX_set_min_proto_version(context.native_handle(), TLS1_2_VERSION);
  SSL_CTX_set_options(context.native_handle(), SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
}

Result<std::unique_ptr<TlsContext>> serve_tls(const std::string& certificate_file, const std::string& key_file) {
  const std::string& key_path = key_file.empty() ? certificate_file : key_file;
  KVF_ASSIGN_OR_RETURN(const Secret key, read_secret_file(key_path));
  auto context = std::make_unique<TlsContext>(TlsContext::tls_server);
  set_versions(*context);
  // Instead of a question on the terminal.
  context->set_password_callback([](size_t, TlsContext::password_purpose) { return std::string(); });
  error_code error;
  context->use_certificate_chain_file(certificate_file, error);
  if (error) return unusable("certificate", certificate_file, error);
  context->use_private_key(boost::asio::buffer(key.view()), TlsContext::pem, error);
  if (error) return unusable("private key", key_path, error);
  if (SSL_CTX_check_private_key(context->native_handle()) != 1)
    return Error{ErrorCode::invalid_argument, key_path + " is not the key of the certificate in " + certificate_file};
  return context;
}

}  // namespace

Result<std::unique_ptr<ServedTls>> ServedTls::load(std::string certificate_file, std::string key_file,
                                                   std::shared_ptr<Logger> logger) {
  std::unique_ptr<ServedTls> served(new ServedTls(std::move(certificate_file), std::move(key_file), std::move(logger)));
  KVF_ASSIGN_OR_RETURN(served->context_, serve_tls(served->certificate_file_, served->key_file_));
  return served;
}

TlsContext& ServedTls::current(TimePoint now) {
  if (!watch_.changed(now)) return *context_;
  auto fresh = serve_tls(certificate_file_, key_file_);
  if (fresh.ok()) {
    context_ = std::move(*fresh);
    if (logger_) logger_->info("the certificate {} has changed and was read", certificate_file_);
  } else if (logger_) {
    logger_->error("the certificate {} has changed and cannot be used, the former stays in force: {}",
                   certificate_file_, fresh.error().to_string());
  }
  return *context_;
}

Result<std::shared_ptr<TlsContext>> trust_authorities(const std::string& ca_file) {
  auto context = std::make_shared<TlsContext>(TlsContext::tls_client);
  set_versions(*context);
  error_code error;
  context->load_verify_file(ca_file, error);
  if (error) return unusable("authorities", ca_file, error);
  context->set_verify_mode(boost::asio::ssl::verify_peer, error);
  return context;
}

}  // namespace kvferry::http
