#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/result.h"

namespace kvferry::bench {

// The process whose memory is read and written. It prints `control HOST:PORT`, then does what lines on that port ask
// for, one controlling process after the other:
//
//   hello            pid, host identity, pool base and length, region id, engine address, raw address
//   plan CASE        what the raw limits and `check` mean from now on
//   fill SEED        fills the pool
//   check SEED FROM  whether the pool holds SEED but for the blocks of the plan, which hold FROM (0: no block moved)
//   regions N        a fresh engine with N regions, in the place of the one before; its address and a region's id
//   parcel LINE      as ParcelTarget answers it
//   take             takes the notifications of the first engine; their number
struct TargetOptions {
  std::string listen = "127.0.0.1:0";
  uint64_t pool = uint64_t{512} << 20;
  bool once = false;   // ends with the first controlling process
  std::string plugin;  // a fabric that it opens besides local and tcp
};
Status run_target(const TargetOptions& options);

}  // namespace kvferry::bench
