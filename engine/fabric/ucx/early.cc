#include "engine/fabric/ucx/early.h"

#include <cstdlib>

namespace {

constexpr const char* kHooks = "UCX_MEM_MMAP_HOOK_MODE";
bool ours = false;  // by this library, while it is loaded

}  // namespace

// UCX replaces mmap and its like in the whole process as soon as it is loaded, unless the environment says otherwise at
// that moment. So this runs before the initialisers of the libraries that this one needs: it is linked with -z
// initfirst. What the user has set stays.
[[gnu::constructor]] static void before_ucx() {
  ours = ::getenv(kHooks) == nullptr;
  if (ours) ::setenv(kHooks, "none", 1);
}

void kvferry::ucx::after_ucx() {
  if (ours) ::unsetenv(kHooks);
  ours = false;
}

bool kvferry::ucx::environment_has(const std::string& variable) {
  return ::getenv(variable.c_str()) != nullptr;
}
