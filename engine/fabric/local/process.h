#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <string>

#include "common/fd.h"
#include "common/result.h"

namespace kvferry::local {

// Another process of this host: reached by pid, known to be alive by its pidfd (a pid alone may be reused).
class Process {
 public:
  static Result<Process> open(uint32_t pid);

  uint32_t pid() const { return pid_; }
  bool alive() const;
  int pidfd() const { return pidfd_.get(); }

  // One 64-bit word of its memory: what proves that it is who it says (proto LocalAttach).
  Result<uint64_t> read_word(uint64_t address) const;
  // A descriptor of its own, opened anew: shared memory that it made for us.
  Result<UniqueFd> open_fd(uint32_t fd, bool writable) const;

  // process_vm_readv / process_vm_writev of spans of equal total length; all of it, or an Error.
  Status read(std::span<const iovec> local, std::span<const iovec> remote) const;
  Status write(std::span<const iovec> local, std::span<const iovec> remote) const;

 private:
  Process(uint32_t pid, UniqueFd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}
  uint32_t pid_;
  UniqueFd pidfd_;
};

}  // namespace kvferry::local
