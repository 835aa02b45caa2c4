#pragma once

#include <string>

#include "common/result.h"

namespace kvferry::bench {

// What a person wants to know of a new machine: its links, devices and limits, each fabric with what speaks against it,
// and which of them an engine with this environment uses (docs/rdma.md).
Result<std::string> examine_this_host();

}  // namespace kvferry::bench
