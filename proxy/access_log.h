#pragma once

#include <ctime>
#include <string>
#include <string_view>

#include "common/clock.h"
#include "common/fd.h"
#include "common/result.h"
#include "http/deadlines.h"

namespace kvferry::proxy {

// What one line says. Durations of stages that were not reached are negative and left out.
struct AccessRecord {
  std::string_view request_id, transfer_id, method, path, remote, prefill, decode, cause;
  int status = 0;
  Duration queue{-1}, prefill_time{-1}, first_byte{-1}, total{-1};
  uint64_t bytes = 0;
};

// One line a request, written in batches (every 100 ms or 32 KiB): a write a request would cost more than its parsing.
class AccessLog {
 public:
  // "-": standard output; "none" or empty: nothing; else a file, appended to.
  static Result<std::unique_ptr<AccessLog>> open(http::Deadlines& deadlines, const std::string& target);
  ~AccessLog() { flush(); }

  void write(const AccessRecord& record);
  void flush();

 private:
  AccessLog(http::Deadlines& deadlines, int fd, UniqueFd owned)
      : fd_(fd), owned_(std::move(owned)), flushing_(deadlines, [this] { flush(); }) {}

  const int fd_;  // -1: off
  const UniqueFd owned_;
  std::string pending_;
  std::time_t second_ = -1;  // of second_text_, which is formatted once a second
  std::string second_text_;
  http::Deadline flushing_;
};

}  // namespace kvferry::proxy
