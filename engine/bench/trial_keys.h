#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "common/result.h"
#include "engine/config.h"

struct evp_pkey_st;
struct x509_st;

namespace kvferry::bench {

// A throw-away authority and what it signs, in a folder of its own that goes with this object: to measure and to test
// with.
class TrialKeys {
 public:
  struct Certificate {
    std::string dns = "engine.trial";  // its only name
    int64_t begins_in_seconds = -60;
    int64_t ends_in_seconds = 3600;
    bool rsa = false;  // of 2048 bits; else P-256
  };

  static Result<std::unique_ptr<TrialKeys>> create();
  ~TrialKeys();

  // Paths in the folder.
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  // A file that only this user may read.
  Status write(const std::string& name, const std::string& content, unsigned mode = 0600) const;
  // <stem>.crt and <stem>.key, signed by this authority.
  Status sign(const std::string& stem, const Certificate& certificate) const;

  // A secret, the same whenever it is asked for.
  Result<AuthConfig> psk() const;
  // A certificate by the name that is allowed to peers.
  Result<AuthConfig> mtls() const;
  AuthConfig mtls_with(const std::string& stem) const;
  Result<AuthConfig> of(AuthMode mode) const;

 private:
  explicit TrialKeys(std::filesystem::path folder);
  Status make_authority();

  const std::filesystem::path folder_;
  std::shared_ptr<evp_pkey_st> authority_key_;
  std::shared_ptr<x509_st> authority_;
};

}  // namespace kvferry::bench
