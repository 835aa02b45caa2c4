#include "common/error.h"

#include <cerrno>
#include <cstring>
#include <utility>

namespace kvferry {

std::string_view to_string(ErrorCode code) {
  switch (code) {
    case ErrorCode::invalid_argument:
      return "invalid_argument";
    case ErrorCode::not_found:
      return "not_found";
    case ErrorCode::permission_denied:
      return "permission_denied";
    case ErrorCode::already_exists:
      return "already_exists";
    case ErrorCode::resource_exhausted:
      return "resource_exhausted";
    case ErrorCode::unavailable:
      return "unavailable";
    case ErrorCode::deadline_exceeded:
      return "deadline_exceeded";
    case ErrorCode::cancelled:
      return "cancelled";
    case ErrorCode::peer_lost:
      return "peer_lost";
    case ErrorCode::protocol:
      return "protocol";
    case ErrorCode::stale:
      return "stale";
    case ErrorCode::gone:
      return "gone";
    case ErrorCode::conflict:
      return "conflict";
    case ErrorCode::unsupported:
      return "unsupported";
    case ErrorCode::not_quiet:
      return "not_quiet";
    case ErrorCode::internal:
      return "internal";
  }
  return "unknown";
}

std::string Error::to_string() const {
  std::string text = message;
  if (!cause.empty()) text += ": " + cause;
  std::string context;
  if (!peer.empty() && text.find(peer) == std::string::npos) context += "peer " + peer;
  if (!where.empty() && text.find(where) == std::string::npos) context += (context.empty() ? "" : ", ") + where;
  if (!context.empty()) text += " (" + context + ")";
  return text;
}

ErrorCode code_of_errno(int errnum) {
  switch (errnum) {
    case EINVAL:
    case EFAULT:
      return ErrorCode::invalid_argument;
    case ENOENT:
    case ESRCH:
      return ErrorCode::not_found;
    case EPERM:
    case EACCES:
      return ErrorCode::permission_denied;
    case EEXIST:
    case EADDRINUSE:
      return ErrorCode::already_exists;
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case ENOBUFS:
      return ErrorCode::resource_exhausted;
    case ECONNREFUSED:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case EADDRNOTAVAIL:
      return ErrorCode::unavailable;
    case ETIMEDOUT:
      return ErrorCode::deadline_exceeded;
    case ECONNRESET:
    case EPIPE:
    case ECONNABORTED:
      return ErrorCode::peer_lost;
    case EOPNOTSUPP:
    case ENOSYS:
      return ErrorCode::unsupported;
    default:
      return ErrorCode::internal;
  }
}

Error errno_error(std::string message, int errnum) {
  char buffer[128];
  // The GNU strerror_r, which may return a constant instead of filling the buffer.
  const char* text = strerror_r(errnum, buffer, sizeof buffer);
  return Error{code_of_errno(errnum), std::move(message), text};
}

Error errno_error(std::string message) {
  const int errnum = errno;
  return errno_error(std::move(message), errnum);
}

}  // namespace kvferry
