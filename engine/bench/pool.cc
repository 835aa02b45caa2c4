#include "engine/bench/pool.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace kvferry::bench {
namespace {

uint64_t word_at(uint64_t offset, uint64_t seed) {
  return (offset + 1) * 0x9e3779b97f4a7c15u ^ seed * 0xbf58476d1ce4e5b9u;
}

// Compares [at, at + length) with what a pool of `seed` has from `source` on.
Status check_range(const Pool& pool, uint64_t at, uint64_t length, uint64_t source, uint64_t seed) {
  for (uint64_t i = 0; i < length; i += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, pool.base() + at + i, sizeof word);
    if (word != word_at(source + i, seed))
      return Error{ErrorCode::internal, fmt::format("wrong bytes at offset {} of the pool: {:016x} instead of {:016x}",
                                                    at + i, word, word_at(source + i, seed))};
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Pool>> Pool::create(uint64_t bytes) {
  void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return errno_error(fmt::format("cannot map a pool of {} bytes", bytes));
  std::memset(base, 1, bytes);
  return std::unique_ptr<Pool>(new Pool(static_cast<std::byte*>(base), bytes));
}

Pool::~Pool() {
  ::munmap(base_, bytes_);
}

void Pool::fill(uint64_t seed) {
  for (uint64_t i = 0; i + sizeof(uint64_t) <= bytes_; i += sizeof(uint64_t)) {
    const uint64_t word = word_at(i, seed);
    std::memcpy(base_ + i, &word, sizeof word);
  }
}

Status check_pool(const Pool& pool, uint64_t seed, std::span<const Moved> moved, uint64_t from_seed) {
  std::vector<Moved> sorted(moved.begin(), moved.end());
  std::sort(sorted.begin(), sorted.end(), [](const Moved& a, const Moved& b) { return a.to < b.to; });
  uint64_t at = 0;
  for (const Moved& block : sorted) {
    KVF_RETURN_IF_ERROR(check_range(pool, at, block.to - at, at, seed));
    KVF_RETURN_IF_ERROR(check_range(pool, block.to, block.length, block.from, from_seed));
    at = block.to + block.length;
  }
  return check_range(pool, at, pool.size() - at, at, seed);
}

}  // namespace kvferry::bench
