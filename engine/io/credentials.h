#pragma once

#include <sys/stat.h>

#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
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
  // What tells one content of a file from the next.
  struct Mark {
    uint64_t device = 0, inode = 0;
    int64_t bytes = 0, seconds = 0, nanoseconds = 0;
    bool operator==(const Mark&) const = default;
  };
  Credentials(AuthConfig config, std::shared_ptr<Logger> logger, MetricsRegistry& metrics);
  std::vector<Mark> look() const;
  void reload();

  const AuthConfig config_;
  const std::shared_ptr<Logger> logger_;
  Counter& reloaded_;
  Counter& failed_;
  std::vector<Mark> marks_;
  TimePoint looked_{};
  std::shared_ptr<const TlsContext> context_;
};

}  // namespace kvferry
