#pragma once

// The public face of bootstrap/: how decoders and proxies find prefillers, and how parcels are released over HTTP.
// docs/bootstrap.md describes the pages; bootstrap/client.h is the client for programs with an event loop.

#include "bootstrap/blocking_client.h"  // IWYU pragma: export
#include "bootstrap/engine_parcels.h"   // IWYU pragma: export
#include "bootstrap/parcel_control.h"   // IWYU pragma: export
#include "bootstrap/ports.h"            // IWYU pragma: export
#include "bootstrap/server.h"           // IWYU pragma: export
