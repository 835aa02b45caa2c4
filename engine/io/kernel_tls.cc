#include "engine/io/kernel_tls.h"

#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/crypto.h>
#include <openssl/kdf.h>
#include <sys/socket.h>

#include <cstring>
#include <fstream>
#include <string>

#include "common/check.h"
#include "engine/io/tls.h"

namespace kvferry {
namespace {

constexpr size_t kKeyBytes = 16;
constexpr size_t kIvBytes = 12;

// HKDF-Expand-Label with an empty context, of the hash SHA-256.
Secret expand_label(std::string_view secret, std::string_view label, size_t bytes) {
  const std::string name = "tls13 " + std::string(label);
  std::string info{'\0', static_cast<char>(bytes), static_cast<char>(name.size())};
  info += name;
  info += '\0';  // of the context
  const auto raw = [](std::string_view text) { return reinterpret_cast<const unsigned char*>(text.data()); };
  const auto size = [](std::string_view text) { return static_cast<int>(text.size()); };
  const std::unique_ptr<EVP_PKEY_CTX, OpensslDeleter<EVP_PKEY_CTX_free>> hkdf(
      EVP_PKEY_CTX_new_id(EVP_PKEY_HKDF, nullptr));
  Secret out;
  auto* const room = reinterpret_cast<unsigned char*>(out.resize(bytes));
  size_t length = bytes;
  KVF_CHECK(hkdf && EVP_PKEY_derive_init(hkdf.get()) == 1 &&
            EVP_PKEY_CTX_set_hkdf_mode(hkdf.get(), EVP_PKEY_HKDEF_MODE_EXPAND_ONLY) == 1 &&
            EVP_PKEY_CTX_set_hkdf_md(hkdf.get(), EVP_sha256()) == 1 &&
            EVP_PKEY_CTX_set1_hkdf_key(hkdf.get(), raw(secret), size(secret)) == 1 &&
            EVP_PKEY_CTX_add1_hkdf_info(hkdf.get(), raw(info), size(info)) == 1 &&
            EVP_PKEY_derive(hkdf.get(), room, &length) == 1 && length == bytes);
  return out;
}

std::optional<unsigned> digit_of(char c) {
  if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a' + 10);
  return std::nullopt;
}

}  // namespace

SendKeys send_keys_of(std::string_view traffic_secret) {
  return {expand_label(traffic_secret, "key", kKeyBytes), expand_label(traffic_secret, "iv", kIvBytes)};
}

std::optional<Secret> secret_in(std::string_view line, std::string_view label) {
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  if (first == last || line.substr(0, first) != label) return std::nullopt;
  const std::string_view digits = line.substr(last + 1);
  if (digits.empty() || digits.size() % 2 != 0) return std::nullopt;
  Secret secret;
  char* const room = secret.resize(digits.size() / 2);
  for (size_t i = 0; i < digits.size(); i += 2) {
    const auto high = digit_of(digits[i]), low = digit_of(digits[i + 1]);
    if (!high || !low) return std::nullopt;
    room[i / 2] = static_cast<char>(*high << 4 | *low);
  }
  return secret;
}

Status encrypt_in_kernel(int fd, const SendKeys& keys) {
  if (::setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", sizeof "tls") != 0)
    return errno_error("this kernel has no TLS for the connection");
  const std::string_view key = keys.key.view(), iv = keys.iv.view();
  KVF_CHECK(key.size() == kKeyBytes && iv.size() == kIvBytes);
  tls12_crypto_info_aes_gcm_128 info{};  // records are counted from 0
  info.info.version = TLS_1_3_VERSION;
  info.info.cipher_type = TLS_CIPHER_AES_GCM_128;
  std::memcpy(info.key, key.data(), sizeof info.key);
  std::memcpy(info.salt, iv.data(), sizeof info.salt);
  std::memcpy(info.iv, iv.data() + sizeof info.salt, sizeof info.iv);
  const bool taken = ::setsockopt(fd, SOL_TLS, TLS_TX, &info, sizeof info) == 0;
  const int cause = errno;
  ::OPENSSL_cleanse(&info, sizeof info);
  errno = cause;
  if (!taken) return errno_error("the kernel's TLS does not take the connection's keys");
  return {};
}

bool kernel_has_tls() {
  std::ifstream file("/proc/sys/net/ipv4/tcp_available_ulp");
  std::string names;
  std::getline(file, names);
  return (" " + names + " ").find(" tls ") != std::string::npos;
}

std::string_view kernel_tls(const AuthConfig& auth) {
  if (auth.mode == AuthMode::open) return "no TLS in mode open";
  if (!auth.kernel_tls) return "switched off (KVFERRY_KERNEL_TLS): OpenSSL makes the records in user space";
  if (!kernel_has_tls()) return "not loaded in this kernel: OpenSSL makes the records in user space";
  return "used where it takes a connection's keys, for what is sent by tcp: OpenSSL makes the other records in user "
         "space";
}

}  // namespace kvferry
