#include "proxy/access_log.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <iterator>

namespace kvferry::proxy {
namespace {

constexpr Duration kFlushEvery = std::chrono::milliseconds(100);
constexpr size_t kFlushBytes = 32 << 10;
constexpr size_t kMaxPath = 256;

void stage(std::string& out, std::string_view name, Duration span) {
  if (span >= Duration(0)) fmt::format_to(std::back_inserter(out), " {}={:.3f}", name, seconds(span) * 1e3);
}

// Client-chosen text may not break the line or hide in it.
void field(std::string& out, std::string_view name, std::string_view text) {
  if (text.empty()) return;
  out.append(" ").append(name).append("=");
  for (const char c : text.substr(0, kMaxPath)) out.push_back(c > ' ' && c < 0x7f && c != '"' && c != '=' ? c : '_');
}

}  // namespace

Result<std::unique_ptr<AccessLog>> AccessLog::open(http::Deadlines& deadlines, const std::string& target) {
  UniqueFd owned;
  int fd = -1;
  if (target == "-") {
    fd = STDOUT_FILENO;
  } else if (!target.empty() && target != "none") {
    owned.reset(::open(target.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640));
    if (!owned.valid()) return errno_error("cannot open the access log " + target);
    fd = owned.get();
  }
  return std::unique_ptr<AccessLog>(new AccessLog(deadlines, fd, std::move(owned)));
}

void AccessLog::write(const AccessRecord& record) {
  if (fd_ < 0) return;
  const auto now = std::chrono::time_point_cast<std::chrono::milliseconds>(std::chrono::system_clock::now());
  const std::time_t second = std::chrono::system_clock::to_time_t(now);
  fmt::format_to(std::back_inserter(pending_), "{:%Y-%m-%dT%H:%M:%S}.{:03}Z", fmt::gmtime(second),
                 now.time_since_epoch().count() % 1000);
  field(pending_, "id", record.request_id);
  field(pending_, "remote", record.remote);
  field(pending_, "method", record.method);
  field(pending_, "path", record.path);
  fmt::format_to(std::back_inserter(pending_), " status={}", record.status);
  field(pending_, "cause", record.cause);
  field(pending_, "prefill", record.prefill);
  field(pending_, "decode", record.decode);
  field(pending_, "transfer", record.transfer_id);
  stage(pending_, "queue_ms", record.queue);
  stage(pending_, "prefill_ms", record.prefill_time);
  stage(pending_, "first_ms", record.first_byte);
  stage(pending_, "total_ms", record.total);
  fmt::format_to(std::back_inserter(pending_), " bytes={}\n", record.bytes);
  pending_.size() >= kFlushBytes ? flush() : flushing_.set_in(kFlushEvery);
}

void AccessLog::flush() {
  flushing_.clear();
  std::string_view rest = pending_;
  while (fd_ >= 0 && !rest.empty()) {
    const ssize_t written = ::write(fd_, rest.data(), rest.size());
    if (written <= 0) break;  // a full disk loses log lines, not requests
    rest.remove_prefix(static_cast<size_t>(written));
  }
  pending_.clear();
}

}  // namespace kvferry::proxy
