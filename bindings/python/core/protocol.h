#pragma once

#include <string_view>

#include "engine/config.h"

namespace kvferry::python {

// Sets the fabrics that a `protocol` of vLLM's or Mooncake's settings means: tcp, auto, rdma, efa. The last two are
// refused where RDMA cannot be had, naming the choices, unless the caller takes what there is instead.
Status apply_protocol(std::string_view protocol, bool may_fall_back, EngineConfig& config);

}  // namespace kvferry::python
