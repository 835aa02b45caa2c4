#include "engine/session/complaints.h"

#include <utility>

namespace kvferry {

void Complaints::note(const std::string& who, const Error& why) {
  metrics_
      .counter("kvferry_complaints_total", "Connections ended because of what the other side did, by cause",
               {{"cause", std::string(to_string(why.code))}})
      .add();
  logger_->debug("complaint about {}: {}", who, why.to_string());
  // Who only comes and goes, as health checks do, is no news.
  if (why.code == ErrorCode::peer_lost) return;
  ++unsaid_;
  if (loop_.now() < next_line_) return;
  next_line_ = after(loop_.now(), std::chrono::seconds(10));
  logger_->warning("{} connections ended because of what the other side did; the last was with {}: {}",
                   std::exchange(unsaid_, 0), who, why.to_string());
}

}  // namespace kvferry
