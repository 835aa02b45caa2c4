#pragma once

#include <boost/asio/ssl/context.hpp>
#include <memory>
#include <string>
#include <utility>

#include "common/clock.h"
#include "common/file_watch.h"
#include "common/log.h"
#include "common/result.h"

namespace kvferry::http {

// TLS 1.2 or later.
using TlsContext = boost::asio::ssl::context;

// What a server shows: a PEM chain and its key, which stands in the same file where `key_file` is empty. A file with a
// key that others may read is refused. Both are read again when they have changed, for connections that come later. On
// one loop.
class ServedTls {
 public:
  // `logger`, which may be null, is told of each reading after the first; one that failed leaves the former in force.
  static Result<std::unique_ptr<ServedTls>> load(std::string certificate_file, std::string key_file,
                                                 std::shared_ptr<Logger> logger);
  TlsContext& current(TimePoint now);

 private:
  ServedTls(std::string certificate_file, std::string key_file, std::shared_ptr<Logger> logger)
      : certificate_file_(std::move(certificate_file)),
        key_file_(std::move(key_file)),
        logger_(std::move(logger)),
        watch_({certificate_file_, key_file_}) {}

  const std::string certificate_file_, key_file_;
  const std::shared_ptr<Logger> logger_;
  FileWatch watch_;
  std::unique_ptr<TlsContext> context_;  // what connections made of it stays theirs
};

// Whom a client believes: servers whose certificate comes from an authority of the PEM file and names the host that was
// asked for.
Result<std::shared_ptr<TlsContext>> trust_authorities(const std::string& ca_file);

}  // namespace kvferry::http
