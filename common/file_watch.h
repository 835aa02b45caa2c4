#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/api.h"
#include "common/clock.h"

namespace kvferry {

// Tells when files were written or replaced. It looks at most once a second: a system call a file.
class KVFERRY_API FileWatch {
 public:
  // Empty paths are passed over. Looks now: make it before the files are read, and what changes meanwhile is told.
  explicit FileWatch(std::vector<std::string> paths);

  // True once for each change.
  bool changed(TimePoint now);

 private:
  // What tells one content of a file from the next.
  struct Mark {
    uint64_t device = 0, inode = 0;
    int64_t bytes = 0, seconds = 0, nanoseconds = 0;
    bool operator==(const Mark&) const = default;
  };
  std::vector<Mark> look() const;

  std::vector<std::string> paths_;
  std::vector<Mark> marks_;
  TimePoint looked_{};
};

}  // namespace kvferry
