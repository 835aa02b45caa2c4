#include "engine/fabric/local/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <climits>
#include <vector>

namespace kvferry::local {
namespace {

using Move = ssize_t (*)(pid_t, const iovec*, unsigned long, const iovec*, unsigned long, unsigned long);

size_t total(std::span<const iovec> spans) {
  size_t bytes = 0;
  for (const iovec& span : spans) bytes += span.iov_len;
  return bytes;
}

// Drops the first `count` bytes of `spans`.
void advance(std::vector<iovec>& spans, size_t count) {
  size_t whole = 0;
  while (whole < spans.size() && count >= spans[whole].iov_len) count -= spans[whole++].iov_len;
  spans.erase(spans.begin(), spans.begin() + static_cast<ptrdiff_t>(whole));
  if (count == 0) return;
  spans.front().iov_base = static_cast<char*>(spans.front().iov_base) + count;
  spans.front().iov_len -= count;
}

Error move_error(uint32_t pid, int errnum) {
  Error error = errno_error("cannot reach the memory of process " + std::to_string(pid), errnum);
  if (errnum == ESRCH) error.code = ErrorCode::peer_lost;
  return error;
}

// The kernel may stop short (at the end of a huge copy, or at a page that is gone): the slow road, span by span.
Status move_rest(Move move, uint32_t pid, std::span<const iovec> local, std::span<const iovec> remote, size_t done) {
  std::vector<iovec> ours(local.begin(), local.end());
  std::vector<iovec> theirs(remote.begin(), remote.end());
  size_t left = total(local) - done;
  advance(ours, done);
  advance(theirs, done);
  while (left > 0) {
    const ssize_t count = move(static_cast<pid_t>(pid), ours.data(), std::min<size_t>(ours.size(), IOV_MAX),
                               theirs.data(), std::min<size_t>(theirs.size(), IOV_MAX), 0);
    if (count < 0) return move_error(pid, errno);
    if (count == 0) return Error{ErrorCode::peer_lost, "process " + std::to_string(pid) + " unmapped its memory"};
    left -= static_cast<size_t>(count);
    advance(ours, static_cast<size_t>(count));
    advance(theirs, static_cast<size_t>(count));
  }
  return {};
}

Status move_all(Move move, uint32_t pid, std::span<const iovec> local, std::span<const iovec> remote) {
  const ssize_t count = move(static_cast<pid_t>(pid), local.data(), local.size(), remote.data(), remote.size(), 0);
  if (count < 0) return move_error(pid, errno);
  if (static_cast<size_t>(count) == total(local)) return {};
  return move_rest(move, pid, local, remote, static_cast<size_t>(count));
}

}  // namespace

Result<Process> Process::open(uint32_t pid) {
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd) return errno_error("cannot open process " + std::to_string(pid));
  // The boundary of this fabric is the uid, also for root, who could reach further.
  struct stat facts {};
  if (::stat(("/proc/" + std::to_string(pid)).c_str(), &facts) != 0)
    return errno_error("cannot look at process " + std::to_string(pid));
  if (facts.st_uid != ::geteuid())
    return Error{ErrorCode::permission_denied, "process " + std::to_string(pid) + " is another user's"};
  return Process(pid, std::move(pidfd));
}

bool Process::alive() const {
  pollfd one{pidfd_.get(), POLLIN, 0};
  return ::poll(&one, 1, 0) == 0;
}

Result<uint64_t> Process::read_word(uint64_t address) const {
  uint64_t word = 0;
  const iovec ours{&word, sizeof word};
  const iovec theirs{reinterpret_cast<void*>(address), sizeof word};
  KVF_RETURN_IF_ERROR(read({&ours, 1}, {&theirs, 1}));
  return word;
}

Result<UniqueFd> Process::open_fd(uint32_t fd, bool writable) const {
  const std::string path = "/proc/" + std::to_string(pid_) + "/fd/" + std::to_string(fd);
  UniqueFd opened(::open(path.c_str(), (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC));
  if (!opened) return errno_error("cannot open shared memory of process " + std::to_string(pid_));
  return opened;
}

Status Process::read(std::span<const iovec> local, std::span<const iovec> remote) const {
  return move_all(::process_vm_readv, pid_, local, remote);
}

Status Process::write(std::span<const iovec> local, std::span<const iovec> remote) const {
  return move_all(::process_vm_writev, pid_, local, remote);
}

}  // namespace kvferry::local
