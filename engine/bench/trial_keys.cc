#include "engine/bench/trial_keys.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>

#include "common/bytes.h"
#include "common/fd.h"
#include "common/random.h"

namespace kvferry::bench {
namespace {

using Key = std::shared_ptr<EVP_PKEY>;
using Cert = std::shared_ptr<X509>;

Error failed(const char* what) {
  return Error{ErrorCode::internal, std::string("cannot make a trial ") + what};
}

Key make_key(bool rsa) {
  return Key(rsa ? EVP_RSA_gen(2048) : EVP_EC_gen("P-256"), EVP_PKEY_free);
}

bool add_extension(X509* certificate, int kind, const std::string& value) {
  const std::unique_ptr<X509_EXTENSION, decltype(&X509_EXTENSION_free)> extension(
      X509V3_EXT_conf_nid(nullptr, nullptr, kind, value.c_str()), X509_EXTENSION_free);
  return extension && X509_add_ext(certificate, extension.get(), -1) == 1;
}

Cert make_certificate(const std::string& name, int64_t from, int64_t to, EVP_PKEY* key) {
  Cert made(X509_new(), X509_free);
  if (!made || key == nullptr) return nullptr;
  SystemRandom random;
  X509_set_version(made.get(), X509_VERSION_3);
  ASN1_INTEGER_set_uint64(X509_get_serialNumber(made.get()), random.next() >> 1);
  X509_gmtime_adj(X509_getm_notBefore(made.get()), from);
  X509_gmtime_adj(X509_getm_notAfter(made.get()), to);
  X509_set_pubkey(made.get(), key);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(made.get()), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  return made;
}

template <class Write>
std::string to_pem(Write write) {
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new(BIO_s_mem()), BIO_free);
  if (!bio || write(bio.get()) != 1) return {};
  char* text = nullptr;
  const long length = BIO_get_mem_data(bio.get(), &text);
  return {text, static_cast<size_t>(length)};
}

}  // namespace

Result<std::unique_ptr<TrialKeys>> TrialKeys::create() {
  std::string pattern = (std::filesystem::temp_directory_path() / "kvferry-trial-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) return errno_error("cannot make a folder for trial keys");
  std::unique_ptr<TrialKeys> made(new TrialKeys(pattern));
  KVF_RETURN_IF_ERROR(made->make_authority());
  SystemRandom random;
  KVF_RETURN_IF_ERROR(made->write("secret", to_hex(random.token(32)) + "\n"));
  return made;
}

TrialKeys::TrialKeys(std::filesystem::path folder) : folder_(std::move(folder)) {}

TrialKeys::~TrialKeys() {
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

Status TrialKeys::write(const std::string& name, const std::string& content, unsigned mode) const {
  const std::string fresh = path(name + ".new");
  const UniqueFd file(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode));
  if (!file || ::fchmod(file.get(), mode) != 0) return errno_error("cannot write " + fresh);
  if (::write(file.get(), content.data(), content.size()) != static_cast<ssize_t>(content.size()))
    return errno_error("cannot write " + fresh);
  std::error_code code;
  std::filesystem::rename(fresh, path(name), code);
  return code ? Status(Error{ErrorCode::internal, "cannot rename " + fresh, code.message()}) : Status();
}

Status TrialKeys::make_authority() {
  authority_key_ = make_key(false);
  authority_ = make_certificate("trial authority", -3600, 7200, authority_key_.get());
  if (!authority_ || !add_extension(authority_.get(), NID_basic_constraints, "critical,CA:TRUE") ||
      !add_extension(authority_.get(), NID_key_usage, "critical,keyCertSign") ||
      X509_set_issuer_name(authority_.get(), X509_get_subject_name(authority_.get())) != 1 ||
      X509_sign(authority_.get(), authority_key_.get(), EVP_sha256()) == 0)
    return failed("authority");
  return write("ca.crt", to_pem([&](BIO* bio) { return PEM_write_bio_X509(bio, authority_.get()); }));
}

Status TrialKeys::sign(const std::string& stem, const Certificate& wanted) const {
  const Key key = make_key(wanted.rsa);
  const Cert made = make_certificate(wanted.dns, wanted.begins_in_seconds, wanted.ends_in_seconds, key.get());
  if (!made || !add_extension(made.get(), NID_subject_alt_name, "DNS:" + wanted.dns) ||
      !add_extension(made.get(), NID_ext_key_usage, "serverAuth,clientAuth") ||
      X509_set_issuer_name(made.get(), X509_get_subject_name(authority_.get())) != 1 ||
      X509_sign(made.get(), authority_key_.get(), EVP_sha256()) == 0)
    return failed("certificate");
  KVF_RETURN_IF_ERROR(write(stem + ".crt", to_pem([&](BIO* bio) { return PEM_write_bio_X509(bio, made.get()); })));
  return write(stem + ".key", to_pem([&](BIO* bio) {
                 return PEM_write_bio_PrivateKey(bio, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
               }));
}

Result<AuthConfig> TrialKeys::psk() const {
  AuthConfig auth;
  auth.mode = AuthMode::psk;
  auth.psk_file = path("secret");
  return auth;
}

Result<AuthConfig> TrialKeys::mtls() const {
  if (!std::filesystem::exists(path("engine.crt"))) KVF_RETURN_IF_ERROR(sign("engine", {}));
  return mtls_with("engine");
}

AuthConfig TrialKeys::mtls_with(const std::string& stem) const {
  AuthConfig auth;
  auth.mode = AuthMode::mtls;
  auth.certificate_file = path(stem + ".crt");
  auth.key_file = path(stem + ".key");
  auth.ca_file = path("ca.crt");
  auth.peer_names = {"engine.trial"};
  return auth;
}

Result<AuthConfig> TrialKeys::of(AuthMode mode) const {
  return mode == AuthMode::psk ? psk() : mode == AuthMode::mtls ? mtls() : Result<AuthConfig>(AuthConfig{});
}

}  // namespace kvferry::bench
