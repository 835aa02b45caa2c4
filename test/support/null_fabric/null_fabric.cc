#include <sys/eventfd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <utility>
#include <vector>

#include "common/fd.h"
#include "engine/fabric/plugin_abi.h"

// A plug-in whose transport moves nothing: every operation is pending, and has ended at the next progress(). What
// remains is what the engine itself costs. It goes by the name of ucx, because engines know no other. Settings, each a
// number, let it answer as a transport may:
// - STICK: so many gets never end, as a broken device's: their connection cannot be ended either. The next ends them.
// - TAKES_BACK: so many of those that never end do so when they are cancelled.
// - SILENT: the same for so many flushes: connections that nobody answers.
// - REJECT: so many connections behind the first are not let in.
// - HELD: so many flushes behind a put end when their connection does, and well.
// - LATE: so many gets end while the descriptor is armed, which wakes nobody.
// - BUSY: so many gets are not taken now.
// - REFUSE: so many gets are refused.
// - KEYS: so many keys are imported; further ones are refused.
// - PACKS: the same for keys that are packed.
// - KEY_BYTES: of a key.
// - EMULATED: 1 where its keys keep nobody out.
// - LONGEST: bytes of the longest operation, which is what it tells; a longer one is refused.

struct kvf_endpoint {
  kvf_fabric* fabric;
  bool rejected;
};
struct kvf_fabric {
  kvf_host host{};
  kvferry::UniqueFd wake;
  std::vector<uint64_t> pending;
  std::vector<uint64_t> ending;
  size_t gets_to_stick = 0;
  size_t gets_to_take_back = 0;
  size_t flushes_to_stick = 0;
  size_t connections = 0;
  size_t connections_to_reject = 0;
  size_t flushes_to_hold = 0;
  size_t gets_to_be_late = 0;
  size_t gets_too_early = 0;
  size_t gets_to_refuse = 0;
  size_t keys_to_import = SIZE_MAX;
  size_t keys_to_pack = SIZE_MAX;
  size_t key_bytes = 16;
  size_t longest = SIZE_MAX;
  size_t emulated = 0;
  std::vector<uint64_t> stuck;
  std::vector<uint64_t> late;
  std::vector<uint64_t> held;
  bool has_put = false;
  std::vector<std::unique_ptr<kvf_endpoint>> undead;
};
struct kvf_memory {};
struct kvf_key {};

namespace {

int32_t begin(kvf_endpoint* endpoint, uint64_t operation, size_t& to_stick) {
  const bool sticks = to_stick > 0;
  to_stick -= sticks ? 1 : 0;
  (sticks ? endpoint->fabric->stuck : endpoint->fabric->pending).push_back(operation);
  return KVF_PENDING;
}

int32_t open(const kvf_host* host, const kvf_open_params* params, kvf_fabric** out, kvf_facts* facts, kvf_text) {
  auto* fabric = new kvf_fabric;
  fabric->host = *host;
  fabric->wake = kvferry::UniqueFd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  for (size_t i = 0; i < params->setting_count; ++i)
    for (auto& [name, count] : {std::pair<const char*, size_t*>("STICK", &fabric->gets_to_stick),
                                std::pair<const char*, size_t*>("TAKES_BACK", &fabric->gets_to_take_back),
                                std::pair<const char*, size_t*>("SILENT", &fabric->flushes_to_stick),
                                std::pair<const char*, size_t*>("REJECT", &fabric->connections_to_reject),
                                std::pair<const char*, size_t*>("HELD", &fabric->flushes_to_hold),
                                std::pair<const char*, size_t*>("LATE", &fabric->gets_to_be_late),
                                std::pair<const char*, size_t*>("BUSY", &fabric->gets_too_early),
                                std::pair<const char*, size_t*>("REFUSE", &fabric->gets_to_refuse),
                                std::pair<const char*, size_t*>("KEYS", &fabric->keys_to_import),
                                std::pair<const char*, size_t*>("PACKS", &fabric->keys_to_pack),
                                std::pair<const char*, size_t*>("KEY_BYTES", &fabric->key_bytes),
                                std::pair<const char*, size_t*>("EMULATED", &fabric->emulated),
                                std::pair<const char*, size_t*>("LONGEST", &fabric->longest)})
      if (std::strcmp(params->settings[i].name, name) == 0)
        *count = std::strtoul(params->settings[i].value, nullptr, 10);
  *out = fabric;
  std::snprintf(facts->description, sizeof facts->description, "nothing moves");
  facts->enforces_keys = fabric->emulated == 0 ? 1 : 0;
  facts->longest_operation = fabric->longest;
  return KVF_OK;
}

int32_t get(kvf_endpoint* endpoint, void*, kvf_memory*, uint64_t, kvf_key*, size_t length, uint64_t operation,
            kvf_text why) {
  kvf_fabric& fabric = *endpoint->fabric;
  if (fabric.gets_too_early > 0) return --fabric.gets_too_early, KVF_BUSY;
  if (fabric.gets_to_be_late > 0) {
    --fabric.gets_to_be_late;
    fabric.late.push_back(operation);
    return KVF_PENDING;
  }
  if (length <= fabric.longest && fabric.gets_to_refuse == 0) return begin(endpoint, operation, fabric.gets_to_stick);
  std::snprintf(why.data, why.size, length > fabric.longest ? "longer than it can be" : "refused as it was told to");
  fabric.gets_to_refuse -= fabric.gets_to_refuse > 0 ? 1 : 0;
  return KVF_FAILED;
}

int32_t import_key(kvf_endpoint* endpoint, const void*, size_t, kvf_key** out, kvf_text why) {
  if (endpoint->fabric->keys_to_import == 0) {
    std::snprintf(why.data, why.size, "more keys than it was told to import");
    return KVF_FAILED;
  }
  --endpoint->fabric->keys_to_import;
  *out = new kvf_key;
  return KVF_OK;
}

int32_t pack_key(kvf_fabric* fabric, kvf_memory*, void* out, size_t* size, kvf_text why) {
  if (fabric->keys_to_pack == 0) {
    std::snprintf(why.data, why.size, "more keys than it was told to pack");
    return KVF_FAILED;
  }
  --fabric->keys_to_pack;
  *size = std::min(*size, fabric->key_bytes);
  std::memset(out, 'k', *size);
  return KVF_OK;
}

int32_t arm(kvf_fabric* fabric) {
  if (!fabric->pending.empty()) return KVF_BUSY;
  std::swap(fabric->pending, fabric->late);
  return KVF_OK;
}

uint32_t progress(kvf_fabric* fabric) {
  std::swap(fabric->pending, fabric->ending);
  for (const uint64_t operation : fabric->ending) fabric->host.ended(fabric->host.self, operation, KVF_OK, nullptr);
  const size_t ended = fabric->ending.size();
  fabric->ending.clear();
  return static_cast<uint32_t>(ended);
}

const kvf_fabric_table kTable = {
    KVF_FABRIC_ABI,
    "ucx",
    open,
    [](kvf_fabric* fabric) {
      for (const uint64_t operation : fabric->stuck)
        fabric->host.ended(fabric->host.self, operation, KVF_LOST, "the fabric is closed");
      delete fabric;
    },
    [](kvf_fabric* fabric) { return int32_t{fabric->wake.get()}; },
    arm,
    progress,
    [](kvf_fabric*, kvf_text address, kvf_text) {
      std::snprintf(address.data, address.size, "127.0.0.1:1");
      return int32_t{KVF_OK};
    },
    [](kvf_fabric*, uint64_t) { return int32_t{KVF_OK}; },
    [](kvf_fabric*, const kvf_range*, kvf_memory** out, kvf_text) {
      *out = new kvf_memory;
      return int32_t{KVF_OK};
    },
    [](kvf_fabric*, kvf_memory* memory) { delete memory; },
    pack_key,
    [](kvf_fabric* fabric, const char*, uint64_t, kvf_endpoint** out, kvf_text) {
      std::move(fabric->stuck.begin(), fabric->stuck.end(), std::back_inserter(fabric->pending));
      fabric->stuck.clear();
      const bool rejected = fabric->connections++ > 0 && fabric->connections_to_reject > 0;
      fabric->connections_to_reject -= rejected ? 1 : 0;
      *out = new kvf_endpoint{fabric, rejected};
      return int32_t{KVF_OK};
    },
    [](kvf_endpoint* endpoint, uint32_t) {
      std::move(endpoint->fabric->held.begin(), endpoint->fabric->held.end(),
                std::back_inserter(endpoint->fabric->pending));
      endpoint->fabric->held.clear();
      while (!endpoint->fabric->pending.empty()) progress(endpoint->fabric);
      if (!endpoint->fabric->stuck.empty()) {
        endpoint->fabric->undead.emplace_back(endpoint);
        return int32_t{KVF_FAILED};
      }
      delete endpoint;
      return int32_t{KVF_OK};
    },
    import_key,
    [](kvf_key* key) { delete key; },
    get,
    [](kvf_endpoint* endpoint, const void*, kvf_memory*, uint64_t, kvf_key*, size_t, uint64_t operation, kvf_text) {
      size_t none = 0;
      endpoint->fabric->has_put = true;
      return begin(endpoint, operation, none);
    },
    [](kvf_endpoint* endpoint, uint64_t operation, kvf_text) {
      if (endpoint->rejected) return int32_t{KVF_LOST};
      if (endpoint->fabric->has_put && endpoint->fabric->flushes_to_hold > 0) {
        --endpoint->fabric->flushes_to_hold;
        endpoint->fabric->held.push_back(operation);
        return int32_t{KVF_PENDING};
      }
      return begin(endpoint, operation, endpoint->fabric->flushes_to_stick);
    },
    [](kvf_endpoint* endpoint, const uint64_t* operations, size_t count) {
      kvf_fabric& fabric = *endpoint->fabric;
      std::erase_if(fabric.stuck, [&](uint64_t operation) {
        if (fabric.gets_to_take_back == 0 || std::find(operations, operations + count, operation) == operations + count)
          return false;
        --fabric.gets_to_take_back;
        fabric.host.ended(fabric.host.self, operation, KVF_FAILED, "cancelled");
        return true;
      });
    },
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const kvf_fabric_table* kvferry_fabric_v1() {
  return &kTable;
}
