#include "engine/session/identity.h"

namespace kvferry {

std::vector<std::string> known_features() {
  return {"notify", "fence", "local-attach"};
}

}  // namespace kvferry
