#include "engine/memory/gate.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace kvferry {
namespace {

Result<UniqueFd> sealed_memfd(const char* name, size_t length) {
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return errno_error("cannot create a memfd");
  if (::ftruncate(fd.get(), static_cast<off_t>(length)) != 0) return errno_error("cannot size a memfd");
  // A peer must not shrink it under the other's mapping (SIGBUS).
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return errno_error("cannot seal a memfd");
  return fd;
}

}  // namespace

Result<SharedMapping> SharedMapping::map(int fd, size_t length, bool writable) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return errno_error("cannot inspect shared memory");
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (static_cast<size_t>(status.st_size) != length || seals < 0 || (seals & F_SEAL_SHRINK) == 0)
    return Error{ErrorCode::protocol, "shared memory of a peer has the wrong size or can shrink"};
  void* base = ::mmap(nullptr, length, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) return errno_error("cannot map shared memory");
  return SharedMapping(base, length);
}

SharedMapping::SharedMapping(SharedMapping&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)), length_(other.length_) {}

SharedMapping::~SharedMapping() {
  if (base_ != nullptr) ::munmap(base_, length_);
}

Result<std::unique_ptr<GateWords>> GateWords::create() {
  KVF_ASSIGN_OR_RETURN(UniqueFd fd, sealed_memfd("kvferry-words", kBytes));
  KVF_ASSIGN_OR_RETURN(SharedMapping mapping, SharedMapping::map(fd.get(), kBytes, true));
  return std::unique_ptr<GateWords>(new GateWords(std::move(fd), std::move(mapping)));
}

Result<WordIndex> GateWords::open(uint64_t generation) {
  KVF_CHECK(generation != 0);
  const std::lock_guard lock(mutex_);
  WordIndex index = used_;
  if (!free_.empty()) {
    index = free_.back();
    free_.pop_back();
  } else if (used_ < kWords) {
    ++used_;
  } else {
    return Error{ErrorCode::resource_exhausted, "all generation words are in use"};
  }
  mapping_.words()[index].store(generation, std::memory_order_seq_cst);
  return index;
}

void GateWords::close(WordIndex index) {
  mapping_.words()[index].store(0, std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void GateWords::free(WordIndex index) {
  const std::lock_guard lock(mutex_);
  free_.push_back(index);
}

Result<UniqueFd> GateSlots::create_fd() {
  return sealed_memfd("kvferry-slots", kBytes);
}

Result<GateSlots> GateSlots::map(int fd) {
  KVF_ASSIGN_OR_RETURN(SharedMapping mapping, SharedMapping::map(fd, kBytes, true));
  return GateSlots(std::move(mapping));
}

int GateSlots::mark(WordIndex word, size_t first, size_t end) {
  for (size_t index = first; index < end; ++index) {
    uint64_t empty = 0;
    if (slot(index).load(std::memory_order_relaxed) == 0 &&
        slot(index).compare_exchange_strong(empty, uint64_t{word} + 1, std::memory_order_seq_cst))
      return static_cast<int>(index);
  }
  return -1;
}

void GateSlots::clear(int index) {
  slot(static_cast<size_t>(index)).store(0, std::memory_order_seq_cst);
}

bool GateSlots::marked(WordIndex word) const {
  for (size_t index = 0; index < kSlots; ++index)
    if (slot(index).load(std::memory_order_seq_cst) == uint64_t{word} + 1) return true;
  return false;
}

bool GateSlots::any_marked() const {
  for (size_t index = 0; index < kSlots; ++index)
    if (slot(index).load(std::memory_order_seq_cst) != 0) return true;
  return false;
}

void GateSlots::clear_all() {
  for (size_t index = 0; index < kSlots; ++index) slot(index).store(0, std::memory_order_seq_cst);
}

}  // namespace kvferry
