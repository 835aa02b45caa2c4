#pragma once

#include <memory>

#include "common/clock.h"
#include "common/file_watch.h"
#include "common/log.h"
#include "common/metrics.h"
#include "engine/io/tls.h"

namespace kvferry {

// An engine's keys or certificates, read again when their files have changed: new connections use the new ones, those
// that stand go on. On loop only.
class Credentials {
 public:
  // Fails when they cannot be read; later on the former ones are kept then, and a line says so.
  static Result<std::unique_ptr<Credentials>> load(const AuthConfig& config, std::shared_ptr<Logger> logger,
                                                   MetricsRegistry& metrics);

  AuthMode mode() const { return config_.mode; }
  // For a new connection. Looks at the files at most once a second: a few system calls on small local files.
  const std::shared_ptr<const TlsContext>& current(TimePoint now);

 private:
  Credentials(AuthConfig config, std::shared_ptr<Logger> logger, MetricsRegistry& metrics);
  void reload();

  const AuthConfig config_;
  FileWatch watch_;
  const std::shared_ptr<Logger> logger_;
  Counter& reloaded_;
  Counter& failed_;
  std::shared_ptr<const TlsContext> context_;
};

}  // namespace kvferry
