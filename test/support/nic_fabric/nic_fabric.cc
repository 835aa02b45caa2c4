#include <dlfcn.h>
#include <fcntl.h>
#include <sys/eventfd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/fd.h"
#include "engine/fabric/plugin_kit.h"
#include "test/support/fake_cuda/control.h"
#include "test/support/nic_fabric/control.h"

// A plug-in whose transport is a NIC between the engines of this process: it reaches their memory without their help,
// and that of the fake driver's GPUs too. It registers memory of a GPU only as a real one could. It goes by the name
// of ucx, because engines know no other.

using kvferry::plugin_kit::say;

struct kvf_fabric {
  struct End {
    uint64_t operation;
    int32_t result;
  };
  kvf_host host{};
  kvferry::UniqueFd wake;
  std::string address;
  std::vector<End> pending;
};
struct kvf_memory {
  uint64_t number;
  kvf_range range;
};
struct kvf_endpoint {
  kvf_fabric* fabric;
};
struct kvf_key {
  uint64_t number;
};

namespace kvferry::nic_fabric {
namespace {

// The network that all NICs are on.
struct World {
  std::mutex mutex;
  std::set<std::string> addresses;
  std::map<uint64_t, kvf_memory*> mapped;
  uint64_t next = 1;
  uint64_t with_dmabuf = 0;
  uint64_t gpu_bytes = 0;
  std::atomic<bool> held = false;
};

World& world() {
  static World& only = *new World;
  return only;
}

const fake_cuda::Control* gpus() {
  void* const driver = ::dlopen(KVF_FAKE_CUDA, RTLD_NOW | RTLD_LOCAL);
  const auto get = reinterpret_cast<fake_cuda::GetControl>(::dlsym(driver, fake_cuda::kGetControl));
  return get();
}

template <auto Member>
uint64_t counted() {
  const std::lock_guard lock(world().mutex);
  return world().*Member;
}

constexpr Control kControl{
    .mapped =
        [](int kind) {
          const std::lock_guard lock(world().mutex);
          uint64_t count = 0;
          for (const auto& [number, memory] : world().mapped) count += memory->range.kind == kind;
          return count;
        },
    .with_dmabuf = counted<&World::with_dmabuf>,
    .gpu_bytes = counted<&World::gpu_bytes>,
    .hold = [](bool hold) { world().held = hold; },
};

// ---- memory

int32_t map(kvf_fabric*, const kvf_range* range, kvf_memory** out, kvf_text why) {
  if (range->kind == KVF_CUDA) {
    if (gpus()->current_device() != range->device) return say(why, "the GPU's context is not current", KVF_FAILED);
    if (!gpus()->synchronises(reinterpret_cast<uint64_t>(range->base)))
      return say(why, "SYNC_MEMOPS is not set", KVF_FAILED);
    if (range->dmabuf >= 0 && ::fcntl(range->dmabuf, F_GETFD) < 0)
      return say(why, "the descriptor is closed", KVF_FAILED);
  } else if (range->kind != KVF_HOST) {
    return say(why, "memory of an unknown kind", KVF_FAILED);
  }
  World& w = world();
  const std::lock_guard lock(w.mutex);
  w.with_dmabuf += range->dmabuf >= 0;
  *out = new kvf_memory{w.next++, *range};
  w.mapped.emplace((*out)->number, *out);
  return KVF_OK;
}

void unmap(kvf_fabric*, kvf_memory* memory) {
  const std::lock_guard lock(world().mutex);
  world().mapped.erase(memory->number);
  delete memory;
}

int32_t pack_key(kvf_fabric*, kvf_memory* memory, void* out, size_t* size, kvf_text) {
  std::memcpy(out, &memory->number, sizeof memory->number);
  *size = sizeof memory->number;
  return KVF_OK;
}

// REQUIRES: the world's mutex.
bool load(std::vector<std::byte>& into, bool of_gpu, const void* from) {
  if (of_gpu) return gpus()->nic_read(into.data(), reinterpret_cast<uint64_t>(from), into.size());
  std::memcpy(into.data(), from, into.size());
  return true;
}
bool store(const std::vector<std::byte>& bytes, bool to_gpu, void* to) {
  if (to_gpu) return gpus()->nic_write(reinterpret_cast<uint64_t>(to), bytes.data(), bytes.size());
  std::memcpy(to, bytes.data(), bytes.size());
  return true;
}

// One piece at once; its end is told in progress().
int32_t move(kvf_endpoint* endpoint, bool put, void* local, kvf_memory* memory, uint64_t remote, kvf_key* key,
             size_t length, uint64_t operation) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  const auto found = w.mapped.find(key->number);
  bool moved = found != w.mapped.end();
  if (moved) {
    const kvf_range& range = found->second->range;
    const uint64_t offset = remote - reinterpret_cast<uint64_t>(range.base);
    const bool gpu_there = range.kind == KVF_CUDA;
    const bool gpu_here = memory != nullptr && memory->range.kind == KVF_CUDA;
    void* const there = reinterpret_cast<void*>(remote);
    std::vector<std::byte> bytes(length);
    moved = offset <= range.length && length <= range.length - offset &&
            (put ? load(bytes, gpu_here, local) && store(bytes, gpu_there, there)
                 : load(bytes, gpu_there, there) && store(bytes, gpu_here, local));
    if (moved && (gpu_here || gpu_there)) w.gpu_bytes += length;
  }
  endpoint->fabric->pending.push_back({operation, moved ? KVF_OK : KVF_LOST});
  return KVF_PENDING;
}

// ---- the loop, and connections

int32_t open(const kvf_host* host, const kvf_open_params*, kvf_fabric** out, kvf_facts* facts, kvf_text) {
  auto* fabric = new kvf_fabric{*host, UniqueFd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)), {}, {}};
  World& w = world();
  const std::lock_guard lock(w.mutex);
  fabric->address = "127.0.0.1:" + std::to_string(w.next++);
  w.addresses.insert(fabric->address);
  std::snprintf(facts->description, sizeof facts->description, "a NIC that is not there");
  facts->enforces_keys = 1;
  facts->longest_operation = UINT64_MAX;
  *out = fabric;
  return KVF_OK;
}

void close(kvf_fabric* fabric) {
  const std::lock_guard lock(world().mutex);
  world().addresses.erase(fabric->address);
  delete fabric;
}

uint32_t tell_ends(kvf_fabric* fabric) {
  const auto ends = std::exchange(fabric->pending, {});
  for (const auto& [operation, result] : ends)
    fabric->host.ended(fabric->host.self, operation, result, result == KVF_OK ? "" : "no such memory there");
  return static_cast<uint32_t>(ends.size());
}

int32_t connect(kvf_fabric* fabric, const char* address, uint64_t, kvf_endpoint** out, kvf_text why) {
  const std::lock_guard lock(world().mutex);
  if (!world().addresses.contains(address)) return say(why, "nobody listens there", KVF_FAILED);
  *out = new kvf_endpoint{fabric};
  return KVF_OK;
}

const kvf_fabric_table kTable = {
    KVF_FABRIC_ABI,
    "ucx",
    open,
    close,
    [](kvf_fabric* fabric) { return int32_t{fabric->wake.get()}; },
    [](kvf_fabric* fabric) { return int32_t{fabric->pending.empty() || world().held ? KVF_OK : KVF_BUSY}; },
    [](kvf_fabric* fabric) { return world().held ? 0 : tell_ends(fabric); },
    [](kvf_fabric* fabric, kvf_text address, kvf_text) {
      std::snprintf(address.data, address.size, "%s", fabric->address.c_str());
      return int32_t{KVF_OK};
    },
    [](kvf_fabric*, uint64_t) { return int32_t{KVF_OK}; },
    map,
    unmap,
    pack_key,
    connect,
    [](kvf_endpoint* endpoint, uint32_t) {
      for (kvf_fabric::End& end : endpoint->fabric->pending) end.result = KVF_LOST;
      tell_ends(endpoint->fabric);
      delete endpoint;
      return int32_t{KVF_OK};
    },
    [](kvf_endpoint*, const void* bytes, size_t size, kvf_key** out, kvf_text why) {
      uint64_t number = 0;
      if (size != sizeof number) return say(why, "not a key of this fabric", KVF_FAILED);
      std::memcpy(&number, bytes, size);
      *out = new kvf_key{number};
      return int32_t{KVF_OK};
    },
    [](kvf_key* key) { delete key; },
    [](kvf_endpoint* endpoint, void* local, kvf_memory* memory, uint64_t remote, kvf_key* key, size_t length,
       uint64_t operation, kvf_text) { return move(endpoint, false, local, memory, remote, key, length, operation); },
    [](kvf_endpoint* endpoint, const void* local, kvf_memory* memory, uint64_t remote, kvf_key* key, size_t length,
       uint64_t operation,
       kvf_text) { return move(endpoint, true, const_cast<void*>(local), memory, remote, key, length, operation); },
    [](kvf_endpoint* endpoint, uint64_t operation, kvf_text) {
      endpoint->fabric->pending.push_back({operation, KVF_OK});
      return int32_t{KVF_PENDING};
    },
    [](kvf_endpoint*, const uint64_t*, size_t) {},
};

}  // namespace
}  // namespace kvferry::nic_fabric

extern "C" __attribute__((visibility("default"))) const kvf_fabric_table* kvferry_fabric_v1() {
  return &kvferry::nic_fabric::kTable;
}

extern "C" __attribute__((visibility("default"))) const kvferry::nic_fabric::Control* kvf_nic_fabric_control() {
  return &kvferry::nic_fabric::kControl;
}
