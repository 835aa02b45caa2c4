#pragma once

#include <map>
#include <string>

#include "engine/fabric/plugin_abi.h"

namespace kvferry::ofi {

// Lets libfabric begin in this process: it reads its variables (FI_...) then and never again. KVF_FAILED: it has begun
// with other values than these. Its lines on standard error are taken from it,
// and the handlers of signals that libraries of providers set meanwhile.
int32_t begin_process(const std::map<std::string, std::string>& variables, kvf_text why);

// The process's handlers of signals as they are now, and those that were kept last.
void keep_signal_handlers();
void restore_signal_handlers();

// What libfabric complained of last in this thread, in brackets, and forgets; empty where there is nothing.
std::string take_complaint();

}  // namespace kvferry::ofi
