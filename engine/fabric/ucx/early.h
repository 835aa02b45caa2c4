#pragma once

#include <string>

namespace kvferry::ucx {

// UCX is loaded, and has read what was set for it: the process's environment is again as it was before. REQUIRES: the
// thread that loaded the plug-in. Repeated calls do nothing.
void after_ucx();

// Whether the process's environment has that variable of UCX's, which UCX then reads by itself.
bool environment_has(const std::string& variable);

}  // namespace kvferry::ucx
