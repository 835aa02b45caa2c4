#include "common/fd.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>

namespace kvferry {

void UniqueFd::reset(int fd) {
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
}

Result<EventFd> EventFd::create() {
  UniqueFd fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!fd) return errno_error("cannot create an eventfd");
  return EventFd(std::move(fd));
}

void EventFd::signal() const {
  const uint64_t one = 1;
  // EAGAIN means that the counter is full, hence signalled already.
  [[maybe_unused]] const ssize_t written = ::write(fd_.get(), &one, sizeof one);
}

void EventFd::drain() const {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t taken = ::read(fd_.get(), &count, sizeof count);
}

}  // namespace kvferry
