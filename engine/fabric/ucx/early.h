#pragma once

namespace kvferry::ucx {

// UCX is loaded, and has read what was set for it: the process's environment is again as it was before. REQUIRES: the
// thread that loaded the plug-in. Repeated calls do nothing.
void after_ucx();

}  // namespace kvferry::ucx
