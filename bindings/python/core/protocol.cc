#include "bindings/python/core/protocol.h"

namespace kvferry::python {

Result<FabricChoice> choose_fabrics(std::string_view protocol, bool may_fall_back) {
  FabricChoice choice{{"local", "tcp"}, {}};
  if (protocol == "tcp" || protocol == "auto") return choice;
  if (protocol != "rdma" && protocol != "efa")
    return Error{ErrorCode::invalid_argument,
                 "unknown protocol \"" + std::string(protocol) + "\"; choose from tcp, auto, rdma, efa"};
  choice.fallback =
      "protocol " + std::string(protocol) + " takes a fabric for RDMA only where KVFERRY_FABRICS names one (ucx, ofi)";
  if (may_fall_back) return choice;
  return Error{ErrorCode::unsupported, choice.fallback + "; choose tcp or auto (fabrics local, tcp)"};
}

}  // namespace kvferry::python
