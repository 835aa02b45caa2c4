#include "proxy/access_log.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "http/message.h"

namespace kvferry::proxy {
namespace {

constexpr Duration kFlushEvery = std::chrono::milliseconds(100);
constexpr size_t kFlushBytes = 32 << 10;
constexpr size_t kMaxPath = 256;

// Milliseconds with three digits behind the point. Written by hand: fmt's floats cost more than the rest of the line.
void stage(std::string& out, std::string_view name, Duration span) {
  if (span < Duration(0)) return;
  const auto us = static_cast<uint64_t>((span.count() + 500) / 1000);
  out.append(" ").append(name).append("=");
  http::append_number(out, us / 1000);
  out.push_back('.');
  for (const uint64_t unit : {100U, 10U, 1U}) out.push_back(static_cast<char>('0' + us % 1000 / unit % 10));
}

bool harmless(char c) {
  return c > ' ' && c < 0x7f && c != '"' && c != '=';
}

// What this process and its configuration name.
void own_field(std::string& out, std::string_view name, std::string_view text) {
  if (!text.empty()) out.append(" ").append(name).append("=").append(text);
}

// Client-chosen text may not break the line or hide in it.
void field(std::string& out, std::string_view name, std::string_view text) {
  if (text.empty()) return;
  text = text.substr(0, kMaxPath);
  out.append(" ").append(name).append("=");
  const size_t at = out.size();
  out.append(text);
  std::replace_if(out.begin() + static_cast<std::ptrdiff_t>(at), out.end(), std::not_fn(harmless), '_');
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
  if (std::exchange(second_, second) != second)
    second_text_ = fmt::format("{:%Y-%m-%dT%H:%M:%S}.", fmt::gmtime(second));
  const auto thousandth = static_cast<uint64_t>(now.time_since_epoch().count() % 1000);
  pending_.append(second_text_);
  for (const uint64_t unit : {100U, 10U, 1U}) pending_.push_back(static_cast<char>('0' + thousandth / unit % 10));
  pending_.push_back('Z');
  field(pending_, "id", record.request_id);
  own_field(pending_, "remote", record.remote);
  field(pending_, "method", record.method);
  field(pending_, "path", record.path);
  pending_.append(" status=");
  http::append_number(pending_, static_cast<uint64_t>(record.status));
  own_field(pending_, "cause", record.cause);
  own_field(pending_, "prefill", record.prefill);
  own_field(pending_, "decode", record.decode);
  own_field(pending_, "transfer", record.transfer_id);
  stage(pending_, "queue_ms", record.queue);
  stage(pending_, "prefill_ms", record.prefill_time);
  stage(pending_, "first_ms", record.first_byte);
  stage(pending_, "total_ms", record.total);
  pending_.append(" bytes=");
  http::append_number(pending_, record.bytes);
  pending_.push_back('\n');
  if (pending_.size() >= kFlushBytes) return flush();
  if (!flushing_.armed()) flushing_.set_in(kFlushEvery);
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
