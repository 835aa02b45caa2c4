#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/api.h"

namespace kvferry {

// What a caller may want to act on. The numbers go over the wire (proto/control.proto, Code): never renumber.
enum class ErrorCode : uint16_t {
  invalid_argument = 1,    // the call itself is wrong; repeating it cannot help
  not_found = 2,           // no such region, peer, transfer id
  permission_denied = 3,   // the region or the owner does not allow it
  already_exists = 4,      // registered, published or bound before
  resource_exhausted = 5,  // a limit named in the message is reached (I6)
  unavailable = 6,         // the peer cannot be reached now; a later try may work
  deadline_exceeded = 7,   // the outcome was due (I3)
  cancelled = 8,           // by the caller
  peer_lost = 9,           // the session broke, the peer died or restarted
  protocol = 10,           // the other side sent what it must not
  stale = 11,              // the lease generation moved while the parcel was read (I1)
  gone = 12,               // the owner does not hold this parcel (any more)
  conflict = 13,           // another reader group has the parcel, or the fingerprint differs
  unsupported = 14,        // not in this build, on this machine, or between these versions
  not_quiet = 15,          // memory is still in use by a stopped peer; quarantined (I4)
  internal = 16,           // a system call failed in a way that has no better name
};

KVFERRY_API std::string_view to_string(ErrorCode code);

// Terminal description of what went wrong. `message` is one sentence without a full stop, `cause` what lies beneath it
// (a system call's error, the peer's words), `peer` and `where` (fabric, session, file) are empty when they do not
// apply.
struct Error {
  ErrorCode code = ErrorCode::internal;
  std::string message = {};
  std::string cause = {};
  std::string peer = {};
  std::string where = {};

  // "<message>: <cause>", with peer and where in brackets when they are not part of the message already.
  KVFERRY_API std::string to_string() const;
};

// The error of the system call that just failed, with errno spelled out as the cause.
KVFERRY_API Error errno_error(std::string message, int errnum);
KVFERRY_API Error errno_error(std::string message);

// Maps errno to the nearest code: EACCES -> permission_denied, ECONNREFUSED -> unavailable, ...
KVFERRY_API ErrorCode code_of_errno(int errnum);

}  // namespace kvferry
