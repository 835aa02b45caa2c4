// Any bytes as the body of a change of backends: a change that can be made, or an Error that says why.

#include <cstdint>

#include "common/check.h"
#include "proxy/change.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto change = kvferry::proxy::read_change(std::string(reinterpret_cast<const char*>(data), size));
  if (!change.ok()) {
    KVF_CHECK(!change.error().message.empty());
    return 0;
  }
  KVF_CHECK(!change->url.host.empty() && change->url.port > 0 && !change->url.secure);
  KVF_CHECK(change->bootstrap_port.value_or(1) > 0);
  return 0;
}
