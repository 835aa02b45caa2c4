#include <cstring>

#include "engine/fabric/ofi/endpoint.h"
#include "engine/fabric/ofi/fabric.h"
#include "engine/fabric/ofi/process.h"

// The table that the engine is given; no exception leaves it.

namespace kvferry::ofi {
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

int32_t connect(kvf_fabric* fabric, const char* address, uint64_t endpoint, kvf_endpoint** out, kvf_text why) {
  return guarded(why, [&] { return kvf_endpoint::connect(*fabric, address, endpoint, out, why); });
}

int32_t disconnect(kvf_endpoint* endpoint, uint32_t) {
  const int32_t result = endpoint->disconnect();
  if (result == KVF_OK) delete endpoint;
  return result;
}

int32_t import_key(kvf_endpoint*, const void* bytes, size_t size, kvf_key** out, kvf_text why) {
  if (size != sizeof(kvf_key)) return plugin_kit::say(why, "not a key of this fabric", KVF_FAILED);
  return guarded(why, [&] {
    *out = new kvf_key;
    std::memcpy(*out, bytes, size);
    return int32_t{KVF_OK};
  });
}

int32_t get(kvf_endpoint* endpoint, void* local, kvf_memory* memory, uint64_t remote, kvf_key* key, size_t length,
            uint64_t operation, kvf_text why) {
  return guarded(
      why, [&] { return endpoint->begin(Request::Kind::read, local, memory, remote, *key, length, operation, why); });
}

int32_t put(kvf_endpoint* endpoint, const void* local, kvf_memory* memory, uint64_t remote, kvf_key* key, size_t length,
            uint64_t operation, kvf_text why) {
  return guarded(why, [&] {
    return endpoint->begin(Request::Kind::write, const_cast<void*>(local), memory, remote, *key, length, operation,
                           why);
  });
}

const kvf_fabric_table kTable = {
    KVF_FABRIC_ABI,
    "ofi",
    open,
    [](kvf_fabric* fabric) { delete fabric; },
    [](kvf_fabric* fabric) { return int32_t{fabric->wake_fd()}; },
    [](kvf_fabric* fabric) { return fabric->arm(); },
    [](kvf_fabric* fabric) { return fabric->progress(); },
    listen,
    [](kvf_fabric* fabric, uint64_t client) { return int32_t{fabric->fence(client) ? KVF_OK : KVF_FAILED}; },
    map,
    [](kvf_fabric* fabric, kvf_memory* memory) { fabric->unmap(memory); },
    [](kvf_fabric* fabric, kvf_memory* memory, void* out, size_t* size, kvf_text why) {
      return fabric->pack_key(*memory, out, size, why);
    },
    connect,
    disconnect,
    import_key,
    [](kvf_key* key) { delete key; },
    get,
    put,
    [](kvf_endpoint* endpoint, uint64_t operation, kvf_text why) {
      return guarded(why, [&] { return endpoint->flush(operation, why); });
    },
    [](kvf_endpoint* endpoint, const uint64_t* operations, size_t count) {
      static_cast<void>(guarded({nullptr, 0}, [&] { return endpoint->cancel({operations, count}); }));
    },
};

}  // namespace
}  // namespace kvferry::ofi

extern "C" __attribute__((visibility("default"))) const kvf_fabric_table* kvferry_fabric_v1() {
  // The first call comes right behind the loading, which began in early.cc.
  static const bool restored = (kvferry::ofi::restore_signal_handlers(), true);
  static_cast<void>(restored);
  return &kvferry::ofi::kTable;
}
