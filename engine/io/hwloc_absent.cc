#include "engine/io/hwloc_places.h"

// In place of hwloc_places.cc where hwloc's header was not there to build with.

namespace kvferry {

Result<HwlocPlaces> read_hwloc(const std::string&) {
  return Error{ErrorCode::unsupported, "this build has no hwloc"};
}

}  // namespace kvferry
