#pragma once

#include <fmt/format.h>

#include <string>
#include <vector>

#include "common/log.h"
#include "test/simulator/timeline.h"

namespace kvferry::simulator {

// What happened in one world, for a person to read, and as one number that two runs of a seed must share. Lines are
// made only while somebody wants to read them: a failing seed is run again for that.
class History {
 public:
  History(const Timeline& timeline, bool recording) : timeline_(timeline), recording_(recording) {}

  template <class... Args>
  void say(fmt::format_string<Args...> format, Args&&... args) {
    if (recording_) add(fmt::format(format, std::forward<Args>(args)...));
  }
  // Mixes an event and its time into the digest.
  void mark(uint64_t kind, uint64_t what);

  bool recording() const { return recording_; }
  uint64_t digest() const { return digest_; }
  const std::vector<std::string>& lines() const { return lines_; }

  // An engine's log as lines of this history.
  std::shared_ptr<Logger> logger(std::string name);

 private:
  void add(std::string text);

  const Timeline& timeline_;
  const bool recording_;
  uint64_t digest_ = 0x9e3779b97f4a7c15u;
  std::vector<std::string> lines_;
};

}  // namespace kvferry::simulator
