#pragma once

#include <memory>
#include <string>

#include "common/log.h"
#include "common/metrics.h"
#include "engine/io/loop.h"

namespace kvferry {

// Who sends what it must not, or takes more than its share: each counted by cause, and named in one warning for however
// many in ten seconds, so that a flood does not become a flood of lines. On loop only.
class Complaints {
 public:
  Complaints(const Loop& loop, std::shared_ptr<Logger> logger, MetricsRegistry& metrics)
      : loop_(loop), logger_(std::move(logger)), metrics_(metrics) {}

  // `who`: an address, or a peer's name.
  void note(const std::string& who, const Error& why);

 private:
  const Loop& loop_;
  const std::shared_ptr<Logger> logger_;
  MetricsRegistry& metrics_;
  TimePoint next_line_{};
  uint64_t unsaid_ = 0;
};

}  // namespace kvferry
