#pragma once

#include <cstddef>
#include <cstdint>

#include "common/clock.h"

namespace kvferry::bootstrap {

// What a stranger may send (I6). The longest registration has three texts of kMaxText bytes, each byte perhaps written
// as \u00xx: 4.6 KiB and the numbers.
constexpr size_t kMaxText = 256;            // engine ids, addresses
constexpr size_t kMaxBodyBytes = 8 << 10;   // of a request
constexpr size_t kMaxHeadBytes = 16 << 10;  // of a request
constexpr size_t kMaxNamespaceDepth = 4;
constexpr size_t kMaxNamespaceSegment = 64;
constexpr size_t kMaxTransferId = 256;  // decoded
constexpr Duration kMaxAge = std::chrono::hours(24 * 365 * 10);

}  // namespace kvferry::bootstrap
