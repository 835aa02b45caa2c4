#pragma once

#include <fmt/format.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "common/api.h"
#include "common/result.h"

namespace kvferry {

enum class LogLevel { debug, info, warning, error, off };

KVFERRY_API Result<LogLevel> parse_log_level(std::string_view name);

// `text` with its control characters written out: what a stranger says may stand in a line, and not begin another.
KVFERRY_API std::string one_line(std::string text);

// Where lines go. The edges (main, bindings, engine) own one and hand it down; libraries return Errors instead.
// Thread-safe. A filtered line costs one comparison: nothing is formatted.
class KVFERRY_API Logger {
 public:
  explicit Logger(LogLevel level) : level_(level) {}
  virtual ~Logger() = default;

  bool wants(LogLevel level) const { return level >= level_; }

  template <class... Args>
  void debug(fmt::format_string<Args...> format, Args&&... args) {
    write(LogLevel::debug, format, std::forward<Args>(args)...);
  }
  template <class... Args>
  void info(fmt::format_string<Args...> format, Args&&... args) {
    write(LogLevel::info, format, std::forward<Args>(args)...);
  }
  template <class... Args>
  void warning(fmt::format_string<Args...> format, Args&&... args) {
    write(LogLevel::warning, format, std::forward<Args>(args)...);
  }
  template <class... Args>
  void error(fmt::format_string<Args...> format, Args&&... args) {
    write(LogLevel::error, format, std::forward<Args>(args)...);
  }

 private:
  template <class... Args>
  void write(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
    if (wants(level)) line(level, one_line(fmt::format(format, std::forward<Args>(args)...)));
  }
  virtual void line(LogLevel level, std::string_view text) = 0;

  const LogLevel level_;
};

// Lines on standard error: time, level, name, text.
KVFERRY_API std::shared_ptr<Logger> make_stderr_logger(LogLevel level, std::string_view name);

// Says nothing.
KVFERRY_API std::shared_ptr<Logger> make_null_logger();

}  // namespace kvferry
