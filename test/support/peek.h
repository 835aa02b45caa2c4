#pragma once

#include <sys/uio.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "common/check.h"

namespace kvferry::test {

// A byte of this process that an engine's thread may be writing now: read by a system call, which is no data race.
inline std::byte peek(const std::byte* address) {
  std::byte value{};
  const iovec ours{&value, 1};
  const iovec theirs{const_cast<std::byte*>(address), 1};
  KVF_CHECK(::process_vm_readv(::getpid(), &ours, 1, &theirs, 1, 0) == 1);
  return value;
}

// Memory that this process has.
inline uint64_t resident_bytes() {
  uint64_t total = 0, pages = 0;
  FILE* const file = std::fopen("/proc/self/statm", "r");
  if (file != nullptr && std::fscanf(file, "%lu %lu", &total, &pages) != 2) pages = 0;
  if (file != nullptr) std::fclose(file);
  return pages * 4096;
}

}  // namespace kvferry::test
