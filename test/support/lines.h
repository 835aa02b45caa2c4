#pragma once

#include <mutex>
#include <string>

#include "common/log.h"

namespace kvferry::test {

// Keeps every line of an engine.
class Lines final : public Logger {
 public:
  Lines() : Logger(LogLevel::debug) {}
  std::string text() const {
    const std::lock_guard lock(mutex_);
    return text_;
  }

 private:
  void line(LogLevel, std::string_view text) override {
    const std::lock_guard lock(mutex_);
    text_.append(text).append("\n");
  }
  mutable std::mutex mutex_;
  std::string text_;
};

}  // namespace kvferry::test
