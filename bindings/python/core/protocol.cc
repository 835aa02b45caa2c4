#include "bindings/python/core/protocol.h"

#include <string>

namespace kvferry::python {

Status apply_protocol(std::string_view protocol, bool may_fall_back, EngineConfig& config) {
  if (protocol != "tcp" && protocol != "auto" && protocol != "rdma" && protocol != "efa")
    return Error{ErrorCode::invalid_argument,
                 "unknown protocol \"" + std::string(protocol) + "\"; choose from tcp, auto, rdma, efa"};
  config.fabrics = {"local", "tcp"};
  // Payload over RDMA is not encrypted and its devices know nobody: who set keys up is asked before it is used.
  if (protocol == "tcp" || (protocol == "auto" && config.auth.mode != AuthMode::open)) return {};
  config.fabrics = {"local", std::string(kRdma), "tcp"};
  config.without_rdma = protocol == "auto" || may_fall_back ? WithoutRdma::quiet : WithoutRdma::refuse;
  return {};
}

}  // namespace kvferry::python
