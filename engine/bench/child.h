#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/fd.h"
#include "common/result.h"

namespace kvferry::bench {

// CPU time of a process of this host, all its threads; nothing when it cannot be read.
std::optional<Duration> cpu_time_of(pid_t process);
// Memory of it that is present, in bytes.
Result<uint64_t> resident_bytes_of(pid_t process);

// This program run again in another role. Killed and reaped with this object; also dies with this process.
class Child {
 public:
  static Result<Child> spawn(std::vector<std::string> arguments);
  Child(Child&& other) noexcept;
  Child& operator=(Child&& other) noexcept;
  ~Child() { end(); }

  pid_t pid() const { return pid_; }
  // The next line that it prints.
  Result<std::string> read_line();
  // SIGSTOP, and returns when it has stopped.
  Status stop();
  void end();

 private:
  Child(pid_t pid, UniqueFd output) : pid_(pid), output_(std::move(output)) {}
  pid_t pid_ = -1;
  UniqueFd output_;
};

}  // namespace kvferry::bench
