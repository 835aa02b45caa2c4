#include "engine/fabric/ofi/graves.h"

#include <mutex>
#include <utility>
#include <vector>

namespace kvferry::ofi {
namespace {

struct All {
  std::mutex mutex;
  size_t living = 0;
  size_t reserved = 0;          // by those that live, or are buried
  std::vector<Remains> buried;  // in the order of their ends
};

All& all() {
  static All one;
  return one;
}

}  // namespace

void Graves::one_more() {
  const std::lock_guard lock(all().mutex);
  ++all().living;
}

bool Graves::reserve() {
  const std::lock_guard lock(all().mutex);
  if (all().reserved >= kMost) return false;
  ++all().reserved;
  return true;
}

void Graves::one_less(Remains remains) {
  const std::lock_guard lock(all().mutex);
  if (remains.endpoint) all().buried.push_back(std::move(remains));
  if (--all().living > 0) return;
  all().buried.clear();
  all().reserved = 0;
}

}  // namespace kvferry::ofi
