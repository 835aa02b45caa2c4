#include "engine/bench/child.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <ctime>
#include <fstream>
#include <utility>

namespace kvferry::bench {

std::optional<Duration> cpu_time_of(pid_t process) {
  clockid_t clock{};
  timespec used{};
  if (::clock_getcpuclockid(process, &clock) != 0 || ::clock_gettime(clock, &used) != 0) return std::nullopt;
  return std::chrono::seconds(used.tv_sec) + std::chrono::nanoseconds(used.tv_nsec);
}

Result<uint64_t> resident_bytes_of(pid_t process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/statm");
  uint64_t total = 0;
  uint64_t resident = 0;
  if (!(file >> total >> resident)) return Error{ErrorCode::not_found, "cannot read the process's statm"};
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

Result<Child> Child::spawn(std::vector<std::string> arguments) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return errno_error("cannot make a pipe");
  UniqueFd output(ends[0]);
  const UniqueFd theirs(ends[1]);
  std::string program = "/proc/self/exe";
  std::vector<char*> words{program.data()};
  for (std::string& argument : arguments) words.push_back(argument.data());
  words.push_back(nullptr);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return errno_error("cannot fork");
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(127);
    ::dup2(theirs.get(), STDOUT_FILENO);
    ::execv(words[0], words.data());
    ::_exit(127);
  }
  return Child(pid, std::move(output));
}

Child::Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, -1)), output_(std::move(other.output_)) {}

Child& Child::operator=(Child&& other) noexcept {
  if (this == &other) return *this;
  end();
  pid_ = std::exchange(other.pid_, -1);
  output_ = std::move(other.output_);
  return *this;
}

Result<std::string> Child::read_line() {
  std::string line;
  char next = 0;
  while (true) {
    const ssize_t count = ::read(output_.get(), &next, 1);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return Error{ErrorCode::peer_lost, "the spawned process ended without a word"};
    if (next == '\n') return line;
    line += next;
  }
}

Status Child::stop() {
  if (::kill(pid_, SIGSTOP) != 0) return errno_error("cannot stop the spawned process");
  siginfo_t info{};
  if (::waitid(P_PID, static_cast<id_t>(pid_), &info, WSTOPPED | WEXITED | WNOWAIT) != 0 || info.si_code != CLD_STOPPED)
    return Error{ErrorCode::peer_lost, "the spawned process ended instead of stopping"};
  return {};
}

void Child::end() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
}

}  // namespace kvferry::bench
