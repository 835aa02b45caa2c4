#include "engine/session/identity.h"

namespace kvferry {

std::vector<std::string> known_features() {
  return {"notify", "fence", "local-attach"};
}

bool Identity::is_own(const Address& dialled) const {
  const bool any_host = address.host == "0.0.0.0" || address.host == "::";
  return dialled.port == address.port && (any_host || dialled.host == address.host);
}

}  // namespace kvferry
