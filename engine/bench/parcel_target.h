#pragma once

#include <memory>
#include <string>

#include "engine/bench/pool.h"
#include "engine/bench/samples.h"
#include "engine/parcel.h"

namespace kvferry::bench {

// Where a benchmark's parcels lie: a cache of pages of 4 KiB, one layer, one head.
KvLayout page_layout(RegionId region, uint32_t pages);
inline constexpr uint64_t kParcelPage = 4096;

// The owner's side of the parcel figures, asked in lines (after the word "parcel"):
//
//   owner                 starts it; its engine's address
//   publish PREFIX N PAGES DIGEST   N parcels PREFIX0, PREFIX1, ... of PAGES pages; returns when they are published
//   flow PREFIX N WINDOW            as publish with one page, at most WINDOW at a time, and waits until all are
//   settled:
//                                   the seconds that took
//   release N             N times: publish, release by force, and the event: p50 and p99 in us
//   expiry N              N leases of 20 to 120 ms: how late their events came, p50 and the worst, in us
class ParcelTarget {
 public:
  static Result<std::unique_ptr<ParcelTarget>> create(const std::string& host, const Pool& pool);
  Result<std::string> answer(const std::string& line);

 private:
  explicit ParcelTarget(const Pool& pool) : pool_(pool) {}
  ParcelSpec spec(const std::string& id, uint32_t pages);
  std::vector<ParcelReleased> await_released();
  Result<std::string> publish(const std::string& prefix, size_t count, uint32_t pages, bool digest);
  Result<std::string> flow(const std::string& prefix, size_t count, size_t window);
  Result<std::string> release(size_t count, bool force);
  Result<std::string> expiry(size_t count);

  const Pool& pool_;
  std::unique_ptr<Engine> engine_;
  Region region_;
  std::unique_ptr<Parcels> parcels_;
  int fd_ = -1;
  uint32_t next_page_ = 0;
};

}  // namespace kvferry::bench
