#include <cstring>

#include "engine/fabric/plugin_kit.h"
#include "engine/fabric/ucx/early.h"
#include "engine/fabric/ucx/endpoint.h"
#include "engine/fabric/ucx/fabric.h"

// The table that the engine is given; no exception leaves it.

namespace kvferry::ucx {
namespace {

using plugin_kit::guarded;

int32_t open(const kvf_host* host, const kvf_open_params* params, kvf_fabric** out, kvf_facts* facts, kvf_text why) {
  return guarded(why, [&] { return kvf_fabric::open(*host, *params, out, *facts, why); });
}

int32_t listen(kvf_fabric* fabric, kvf_text address, kvf_text why) {
  return guarded(why, [&] { return fabric->listen(address, why); });
}

int32_t map(kvf_fabric* fabric, const kvf_range* range, kvf_memory** out, kvf_text why) {
  return guarded(why, [&] { return fabric->map(*range, out, why); });
}

int32_t pack_key(kvf_fabric* fabric, kvf_memory* memory, void* out, size_t* size, kvf_text why) {
  void* packed = nullptr;
  size_t packed_size = 0;
  if (const ucs_status_t status = ucp_rkey_pack(fabric->context(), memory->handle, &packed, &packed_size);
      status != UCS_OK)
    return say(why, "UCX cannot make a key", status, KVF_FAILED);
  const bool fits = packed_size <= *size;
  if (fits) std::memcpy(out, packed, packed_size);
  *size = packed_size;
  ucp_rkey_buffer_release(packed);
  return fits ? KVF_OK : say(why, "the key is longer than the engine takes", UCS_ERR_BUFFER_TOO_SMALL, KVF_FAILED);
}

const kvf_fabric_table kTable = {
    KVF_FABRIC_ABI,
    "ucx",
    open,
    [](kvf_fabric* fabric) { delete fabric; },
    [](kvf_fabric* fabric) { return int32_t{fabric->wake_fd()}; },
    [](kvf_fabric* fabric) { return fabric->arm(); },
    [](kvf_fabric* fabric) { return fabric->progress(); },
    listen,
    [](kvf_fabric* fabric, uint64_t client) { return int32_t{fabric->fence(client) ? KVF_OK : KVF_FAILED}; },
    map,
    [](kvf_fabric* fabric, kvf_memory* memory) { fabric->unmap(memory); },
    pack_key,
    [](kvf_fabric* fabric, const char* address, uint64_t endpoint, kvf_endpoint** out, kvf_text why) {
      return guarded(why, [&] { return connect(fabric, address, endpoint, out, why); });
    },
    disconnect,
    [](kvf_endpoint* endpoint, const void* bytes, size_t size, kvf_key** out, kvf_text why) {
      return guarded(why, [&] { return import_key(endpoint, bytes, size, out, why); });
    },
    drop_key,
    get,
    put,
    flush,
    [](kvf_endpoint*, const uint64_t*, size_t) {},  // ucp_request_cancel() takes back receives alone
};

}  // namespace
}  // namespace kvferry::ucx

extern "C" __attribute__((visibility("default"))) const kvf_fabric_table* kvferry_fabric_v1() {
  kvferry::ucx::after_ucx();
  return &kvferry::ucx::kTable;
}
