#pragma once

#include <optional>
#include <string_view>

#include "common/result.h"
#include "common/secret.h"
#include "engine/config.h"

namespace kvferry {

// What one side of a connection of TLS 1.3 encrypts with, AES-128-GCM, from its first record of data on.
struct SendKeys {
  Secret key;  // 16 bytes
  Secret iv;   // 12 bytes
};

// Out of a traffic secret of SHA-256 (RFC 8446, 7.3).
SendKeys send_keys_of(std::string_view traffic_secret);

// The secret in a line that OpenSSL tells of a connection, "LABEL RANDOM SECRET" in hexadecimal, if it has this label.
std::optional<Secret> secret_in(std::string_view line, std::string_view label);

// From here on the kernel makes records of what is written to the socket. An Error: it does not, and the socket sends
// as before.
Status encrypt_in_kernel(int fd, const SendKeys& keys);

// Whether the kernel has its module loaded. To ask for TLS would load it, where this process may, and wait for that.
bool kernel_has_tls();

// For describe(): who makes the records of an engine's connections.
std::string_view kernel_tls(const AuthConfig& auth);

}  // namespace kvferry
