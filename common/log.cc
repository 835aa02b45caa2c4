#include "common/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <iterator>
#include <string>

namespace kvferry {
namespace {

spdlog::level::level_enum spd_level(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      return spdlog::level::debug;
    case LogLevel::info:
      return spdlog::level::info;
    case LogLevel::warning:
      return spdlog::level::warn;
    case LogLevel::error:
      return spdlog::level::err;
    case LogLevel::off:
      return spdlog::level::off;
  }
  return spdlog::level::off;
}

class StderrLogger final : public Logger {
 public:
  StderrLogger(LogLevel level, std::string_view name)
      : Logger(level), sink_(std::string(name), std::make_shared<spdlog::sinks::stderr_sink_mt>()) {
    sink_.set_level(spd_level(level));
    sink_.set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ %n: %v");
  }

 private:
  void line(LogLevel level, std::string_view text) override {
    sink_.log(spd_level(level), spdlog::string_view_t(text.data(), text.size()));
  }
  spdlog::logger sink_;  // never put into spdlog's global registry
};

class NullLogger final : public Logger {
 public:
  NullLogger() : Logger(LogLevel::off) {}

 private:
  void line(LogLevel, std::string_view) override {}
};

}  // namespace

std::string one_line(std::string text) {
  const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  if (std::none_of(text.begin(), text.end(), control)) return text;
  std::string out;
  for (const char c : text) {
    if (control(c)) fmt::format_to(std::back_inserter(out), "\\x{:02x}", static_cast<unsigned char>(c));
    if (!control(c)) out.push_back(c);
  }
  return out;
}

Result<LogLevel> parse_log_level(std::string_view name) {
  if (name == "debug" || name == "DEBUG" || name == "trace" || name == "TRACE") return LogLevel::debug;
  if (name == "info" || name == "INFO") return LogLevel::info;
  if (name == "warning" || name == "WARNING" || name == "warn" || name == "WARN") return LogLevel::warning;
  if (name == "error" || name == "ERROR") return LogLevel::error;
  if (name == "off" || name == "OFF") return LogLevel::off;
  return Error{ErrorCode::invalid_argument,
               "log level must be debug, info, warning, error or off, not \"" + std::string(name) + "\""};
}

std::shared_ptr<Logger> make_stderr_logger(LogLevel level, std::string_view name) {
  return std::make_shared<StderrLogger>(level, name);
}

std::shared_ptr<Logger> make_null_logger() {
  return std::make_shared<NullLogger>();
}

}  // namespace kvferry
