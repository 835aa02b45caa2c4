#include "test/simulator/history.h"

namespace kvferry::simulator {
namespace {

class HistoryLogger final : public Logger {
 public:
  HistoryLogger(History& history, std::string name)
      : Logger(LogLevel::debug), history_(history), name_(std::move(name)) {}

 private:
  void line(LogLevel, std::string_view text) override { history_.say("{}: {}", name_, text); }

  History& history_;
  const std::string name_;
};

}  // namespace

void History::mark(uint64_t kind, uint64_t what) {
  const auto time = static_cast<uint64_t>(timeline_.now().time_since_epoch().count());
  for (const uint64_t word : {time, kind, what}) digest_ = (digest_ ^ word) * 0x100000001b3u + (digest_ >> 47);
}

std::shared_ptr<Logger> History::logger(std::string name) {
  if (!recording_) return make_null_logger();
  return std::make_shared<HistoryLogger>(*this, std::move(name));
}

void History::add(std::string text) {
  const auto since = timeline_.now() - TimePoint(std::chrono::hours(1));
  lines_.push_back(fmt::format("{:12.6f} {}", seconds(since), std::move(text)));
}

}  // namespace kvferry::simulator
