#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "test/support/fake_cuda/world.h"

// Memory of one process in another: the memfd behind an allocation, opened through /proc.

namespace kvferry::fake_cuda {
namespace {

constexpr uint32_t kMagic = 0xcda1;

struct Handle {
  uint32_t magic;
  int32_t pid;
  int32_t fd;
  int32_t device;
  uint64_t size;
  uint64_t inode;  // a descriptor that was closed and given out again is another allocation's
};
static_assert(sizeof(Handle) <= sizeof(cuda::IpcHandle));

uint64_t inode_of(int fd) {
  struct stat about {};
  return ::fstat(fd, &about) == 0 ? about.st_ino : 0;
}

}  // namespace

KVF_FAKE Code cuDeviceGetUuid_v2(cuda::Uuid* uuid, int device) {
  const std::lock_guard lock(world().mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  if (device < 0 || device >= kDevices) return cuda::kInvalidDevice;
  *uuid = {};
  uuid->bytes[0] = static_cast<char>('a' + device);
  return cuda::kSuccess;
}

KVF_FAKE Code cuIpcGetMemHandle(cuda::IpcHandle* out, DevicePointer address) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  const auto found = w.memory.find(address);
  if (found == w.memory.end() || found->second.imported) return cuda::kInvalidValue;
  if (current() == nullptr || current()->device != found->second.device) return cuda::kInvalidContext;
  Handle handle{};
  handle.magic = kMagic;
  handle.pid = ::getpid();
  handle.fd = found->second.fd.get();
  handle.device = found->second.device;
  handle.size = found->second.size;
  handle.inode = inode_of(handle.fd);
  std::memset(out, 0, sizeof(*out));
  std::memcpy(out, &handle, sizeof(handle));
  return cuda::kSuccess;
}

KVF_FAKE Code cuIpcOpenMemHandle_v2(DevicePointer* address, cuda::IpcHandle in, unsigned) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (const Code code = enter(); code != cuda::kSuccess) return code;
  if (current() == nullptr) return cuda::kInvalidContext;
  Handle handle{};
  std::memcpy(&handle, &in, sizeof(handle));
  // As CUDA: not in the process that the memory is of.
  if (handle.magic != kMagic || handle.pid == ::getpid()) return cuda::kInvalidContext;
  UniqueFd fd(::open(fmt::format("/proc/{}/fd/{}", handle.pid, handle.fd).c_str(), O_RDWR | O_CLOEXEC));
  if (!fd || inode_of(fd.get()) != handle.inode) return cuda::kInvalidHandle;
  ++w.imports;
  return map_memory(address, handle.size, std::move(fd), handle.device, true);
}

KVF_FAKE Code cuIpcCloseMemHandle(DevicePointer address) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  const auto found = w.memory.find(address);
  if (found == w.memory.end() || !found->second.imported) return cuda::kInvalidValue;
  if (current() == nullptr) return cuda::kInvalidContext;
  ::munmap(reinterpret_cast<void*>(address), found->second.size);
  ::munmap(found->second.backing, found->second.size);
  w.memory.erase(found);
  return enter();
}

}  // namespace kvferry::fake_cuda
