#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "common/fd.h"
#include "common/result.h"

namespace kvferry::test {

struct ProcessOptions {
  std::vector<std::string> arguments;              // without the program's own name
  std::map<std::string, std::string> environment;  // besides what this process has
  int network_namespace = -1;                      // entered before the program starts; not owned
  bool merge_stderr = false;                       // stderr is read with stdout; else it is this process's
};

// How a child ended: one of both is set.
struct ProcessEnd {
  int exit_status = -1;
  int signal = 0;
};

// A child process with pipes to its stdin and stdout, for tests. Its destructor kills and reaps it, and the kernel
// kills it when the thread that spawned it ends, so that no child outlives its test. Not thread-safe.
class Process {
 public:
  static Result<Process> spawn(const std::string& program, const ProcessOptions& options = {});
  static Result<Process> spawn(const std::string& program, std::vector<std::string> arguments) {
    ProcessOptions options;
    options.arguments = std::move(arguments);
    return spawn(program, options);
  }

  Process(Process&&) noexcept = default;
  Process& operator=(Process&& other) noexcept;
  ~Process();

  pid_t pid() const { return pid_; }

  Status write(std::string_view text);
  void close_stdin() { stdin_.reset(); }

  // The next line of stdout without its end. `deadline_exceeded` when none came in time, `peer_lost` when stdout ended.
  Result<std::string> read_line(Duration limit);
  // The next line that contains `text`; lines before it are dropped.
  Result<std::string> read_line_with(std::string_view text, Duration limit);

  Status signal(int number);
  // SIGSTOP, and returns when the child has stopped; SIGCONT.
  Status stop();
  Status resume();
  // SIGKILL and reaping.
  Status kill();
  // `deadline_exceeded` when the child lives on. Repeatable: tells the same end again.
  Result<ProcessEnd> wait(Duration limit);

  // Of all its threads, those that ended too.
  Result<Duration> cpu_time() const;
  Result<uint64_t> resident_bytes() const;
  Result<size_t> open_files() const;
  Result<size_t> threads() const;

 private:
  Process(pid_t pid, UniqueFd handle, UniqueFd to_child, UniqueFd from_child);
  void end();
  // Appends what stdout has to `pending_`, waiting until `deadline` for it.
  Status fill(TimePoint deadline);

  pid_t pid_;
  UniqueFd handle_;  // a pidfd; without it this owns no child (moved from)
  UniqueFd stdin_;
  UniqueFd stdout_;
  std::string pending_;  // read, but not given out
  bool reaped_ = false;
  ProcessEnd end_;
};

}  // namespace kvferry::test
