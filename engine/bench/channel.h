#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <string>
#include <vector>

#include "common/fd.h"
#include "common/result.h"
#include "engine/io/address.h"

namespace kvferry::bench {

// Blocking sockets: what the control channel, the raw limits and the scripted peers stand on.

Result<UniqueFd> dial(const std::string& address);
struct ListeningSocket {
  UniqueFd fd;
  std::string address;  // with the port that it got
};
Result<ListeningSocket> listen_on(const std::string& address);
Result<UniqueFd> accept_from(int listener);

Status send_all(int fd, const void* bytes, size_t count);
Status receive_all(int fd, void* bytes, size_t count);
// Vectored, IOV_MAX at a time; the list is used up.
Status send_vectors(int fd, std::vector<iovec> from);
Status receive_vectors(int fd, std::vector<iovec> into);

// Lines over a connected socket: one side asks, the other answers, each line ends with '\n'. An answer that begins with
// "error " is an Error to ask().
class LineChannel {
 public:
  LineChannel() = default;
  explicit LineChannel(UniqueFd fd) : fd_(std::move(fd)) {}

  Status send(const std::string& line);
  Result<std::string> receive();
  Result<std::string> ask(const std::string& line);

 private:
  UniqueFd fd_;
  std::string pending_;
};

}  // namespace kvferry::bench
