#include "test/support/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

namespace kvferry::test {
namespace {

constexpr Duration kReapLimit = std::chrono::seconds(60);

TimePoint now() {
  return SystemClock().now();
}

// Milliseconds for poll(2), rounded up, so that a wait does not spin in its last millisecond.
int poll_limit(TimePoint deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - now()).count();
  return static_cast<int>(std::clamp<decltype(left)>(left, 0, 1'000'000));
}

// In the child, between fork and exec: system calls only.
[[noreturn]] void become(char* const* words, const ProcessOptions& options, pid_t parent, int in, int out) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(127);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (options.network_namespace >= 0 && ::setns(options.network_namespace, CLONE_NEWNET) != 0) ::_exit(126);
  ::dup2(in, STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  if (options.merge_stderr) ::dup2(out, STDERR_FILENO);
  ::execv(words[0], words);
  ::_exit(127);
}

void end_child(pid_t pid) {
  ::kill(pid, SIGKILL);
  while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
}

std::vector<std::string> command_line(const std::string& program, const ProcessOptions& options) {
  std::vector<std::string> words;
  if (!options.environment.empty()) {
    words.emplace_back("/usr/bin/env");
    for (const auto& [name, value] : options.environment) words.push_back(name + "=" + value);
  }
  words.push_back(program);
  words.insert(words.end(), options.arguments.begin(), options.arguments.end());
  return words;
}

Result<size_t> entries(const std::string& folder) {
  std::error_code failure;
  const std::filesystem::directory_iterator all(folder, failure);
  if (failure) return errno_error("cannot list " + folder, failure.value());
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

}  // namespace

Result<Process> Process::spawn(const std::string& program, const ProcessOptions& options) {
  int to_child[2];
  int from_child[2];
  if (::pipe2(to_child, O_CLOEXEC) != 0) return errno_error("cannot make a pipe");
  UniqueFd child_in(to_child[0]);
  UniqueFd our_out(to_child[1]);
  if (::pipe2(from_child, O_CLOEXEC) != 0) return errno_error("cannot make a pipe");
  UniqueFd our_in(from_child[0]);
  UniqueFd child_out(from_child[1]);

  std::vector<std::string> words = command_line(program, options);
  if (::access(words.front().c_str(), X_OK) != 0) return errno_error("cannot run " + words.front());
  std::vector<char*> pointers;
  pointers.reserve(words.size() + 1);
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);

  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return errno_error("cannot fork");
  if (pid == 0) become(pointers.data(), options, parent, child_in.get(), child_out.get());
  UniqueFd handle(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!handle) {
    const int failure = errno;
    end_child(pid);
    return errno_error("cannot open a pidfd", failure);
  }
  return Process(pid, std::move(handle), std::move(our_out), std::move(our_in));
}

Process::Process(pid_t pid, UniqueFd handle, UniqueFd to_child, UniqueFd from_child)
    : pid_(pid), handle_(std::move(handle)), stdin_(std::move(to_child)), stdout_(std::move(from_child)) {}

Process& Process::operator=(Process&& other) noexcept {
  if (this == &other) return *this;
  end();
  pid_ = other.pid_;
  handle_ = std::move(other.handle_);
  stdin_ = std::move(other.stdin_);
  stdout_ = std::move(other.stdout_);
  pending_ = std::move(other.pending_);
  reaped_ = other.reaped_;
  end_ = other.end_;
  return *this;
}

Process::~Process() {
  end();
}

void Process::end() {
  if (!handle_ || reaped_) return;
  end_child(pid_);
  reaped_ = true;
}

Status Process::write(std::string_view text) {
  // A child that is gone shall be an Error here, not a signal.
  sigset_t pipe_signal;
  sigset_t before;
  sigemptyset(&pipe_signal);
  sigaddset(&pipe_signal, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe_signal, &before);
  int failure = 0;
  while (!text.empty() && failure == 0) {
    const ssize_t written = ::write(stdin_.get(), text.data(), text.size());
    if (written >= 0) text.remove_prefix(static_cast<size_t>(written));
    if (written < 0 && errno != EINTR) failure = errno;
  }
  const timespec at_once{};
  if (failure == EPIPE) ::sigtimedwait(&pipe_signal, nullptr, &at_once);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (failure != 0) return errno_error("cannot write to the child", failure);
  return {};
}

Status Process::fill(TimePoint deadline) {
  for (;;) {
    pollfd event{stdout_.get(), POLLIN, 0};
    const int ready = ::poll(&event, 1, poll_limit(deadline));
    if (ready < 0 && errno == EINTR) continue;
    if (ready == 0) return Error{ErrorCode::deadline_exceeded, "the child printed no line in time", pending_, {}, {}};
    char buffer[4096];
    const ssize_t taken = ::read(stdout_.get(), buffer, sizeof buffer);
    if (taken < 0 && errno == EINTR) continue;
    if (taken < 0) return errno_error("cannot read from the child");
    if (taken == 0) return Error{ErrorCode::peer_lost, "the child closed its output", pending_, {}, {}};
    pending_.append(buffer, static_cast<size_t>(taken));
    return {};
  }
}

Result<std::string> Process::read_line(Duration limit) {
  const TimePoint deadline = after(now(), limit);
  for (;;) {
    const size_t end = pending_.find('\n');
    if (end != std::string::npos) {
      std::string line = pending_.substr(0, end);
      pending_.erase(0, end + 1);
      return line;
    }
    KVF_RETURN_IF_ERROR(fill(deadline));
  }
}

Result<std::string> Process::read_line_with(std::string_view text, Duration limit) {
  const TimePoint deadline = after(now(), limit);
  for (;;) {
    auto line = read_line(std::max(Duration(0), deadline - now()));
    if (!line.ok() || line->find(text) != std::string::npos) return line;
  }
}

Status Process::signal(int number) {
  // After reaping, the number may be another process's.
  if (reaped_) return Error{ErrorCode::not_found, "the child has ended", {}, {}, {}};
  if (::kill(pid_, number) != 0) return errno_error("cannot signal the child");
  return {};
}

Status Process::stop() {
  KVF_RETURN_IF_ERROR(signal(SIGSTOP));
  siginfo_t info{};
  if (::waitid(P_PID, static_cast<id_t>(pid_), &info, WSTOPPED | WEXITED | WNOWAIT) != 0)
    return errno_error("cannot wait for the child to stop");
  if (info.si_code != CLD_STOPPED)
    return Error{ErrorCode::peer_lost, "the child ended instead of stopping", {}, {}, {}};
  return {};
}

Status Process::resume() {
  return signal(SIGCONT);
}

Status Process::kill() {
  if (reaped_) return {};
  KVF_RETURN_IF_ERROR(signal(SIGKILL));
  auto ended = wait(kReapLimit);
  if (!ended) return std::move(ended).error();
  return {};
}

Result<ProcessEnd> Process::wait(Duration limit) {
  if (reaped_) return end_;
  const TimePoint deadline = after(now(), limit);
  pollfd event{handle_.get(), POLLIN, 0};
  int ready = 0;
  do {
    ready = ::poll(&event, 1, poll_limit(deadline));
  } while (ready < 0 && errno == EINTR);
  if (ready == 0) return Error{ErrorCode::deadline_exceeded, "the child did not end in time", {}, {}, {}};
  int status = 0;
  if (::waitpid(pid_, &status, 0) != pid_) return errno_error("cannot reap the child");
  reaped_ = true;
  if (WIFEXITED(status)) end_.exit_status = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) end_.signal = WTERMSIG(status);
  return end_;
}

Result<Duration> Process::cpu_time() const {
  clockid_t clock{};
  if (const int failure = ::clock_getcpuclockid(pid_, &clock); failure != 0)
    return errno_error("cannot find the child's CPU clock", failure);
  timespec used{};
  if (::clock_gettime(clock, &used) != 0) return errno_error("cannot read the child's CPU clock");
  return std::chrono::seconds(used.tv_sec) + std::chrono::nanoseconds(used.tv_nsec);
}

Result<uint64_t> Process::resident_bytes() const {
  std::ifstream file("/proc/" + std::to_string(pid_) + "/statm");
  uint64_t total = 0;
  uint64_t resident = 0;
  if (!(file >> total >> resident)) return Error{ErrorCode::not_found, "cannot read the child's statm", {}, {}, {}};
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

Result<size_t> Process::open_files() const {
  return entries("/proc/" + std::to_string(pid_) + "/fd");
}

Result<size_t> Process::threads() const {
  return entries("/proc/" + std::to_string(pid_) + "/task");
}

}  // namespace kvferry::test
