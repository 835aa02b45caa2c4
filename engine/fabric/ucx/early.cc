#include <cstdlib>

// UCX replaces mmap and its like in the whole process as soon as it is loaded, unless the environment says otherwise at
// that moment. So this runs before the initialisers of the libraries that this one needs: it is linked with -z
// initfirst. What the user has set stays.
[[gnu::constructor]] static void before_ucx() {
  ::setenv("UCX_MEM_MMAP_HOOK_MODE", "none", 0);
}
