#pragma once

#include "sim/options.h"

namespace kvferry::sim {

// Serves until SIGTERM or SIGINT; then lets requests and their readers finish for a while, and ends.
Status serve(const SimOptions& options);

}  // namespace kvferry::sim
