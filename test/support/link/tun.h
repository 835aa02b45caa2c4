#pragma once

#include <string>

#include "common/fd.h"
#include "common/result.h"

namespace kvferry::test {

// A network namespace without a name, with its loopback and one tun device up. The kernel deletes it when the last
// descriptor of it is closed and the last process in it has ended.
struct TunNamespace {
  UniqueFd network_namespace;
  UniqueFd tun;  // non-blocking; one IP packet a read or write
};

// Moves the calling thread into a new namespace and sets it up with `address`/24. Needs CAP_NET_ADMIN and
// CAP_SYS_ADMIN.
Result<TunNamespace> enter_new_tun_namespace(const std::string& address, int mtu);

}  // namespace kvferry::test
