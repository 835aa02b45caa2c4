#include "engine/fabric/ofi/process.h"

// Libraries that libfabric needs (PSM's) take crashes and signals of the whole process as soon as they are loaded. So
// this runs before their initialisers: it is linked with -z initfirst.
[[gnu::constructor]] static void before_libfabric() {
  kvferry::ofi::keep_signal_handlers();
}
