#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace kvferry::python {

struct FabricChoice {
  std::vector<std::string> fabrics;  // for EngineConfig::fabrics
  std::string fallback;              // why it is not what was asked for; empty when it is
};

// The fabrics that a `protocol` of vLLM's or Mooncake's settings means. `rdma` and `efa` need a device: without one
// they are refused, naming the choices, unless the caller takes what there is instead.
Result<FabricChoice> choose_fabrics(std::string_view protocol, bool may_fall_back);

}  // namespace kvferry::python
