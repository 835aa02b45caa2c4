#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "engine/types.h"

namespace kvferry::bench {

// One way of moving bytes that is measured: `count` blocks of `block` bytes in one transfer, by each of `threads`.
struct Case {
  std::string fabric = "local";
  Operation operation = Operation::read;
  uint64_t block = 4096;
  size_t count = 1;
  bool scattered = true;  // blocks lie in a random order on both sides; else one after the other
  int threads = 1;

  uint64_t bytes() const { return block * count; }  // of one transfer
  bool operator==(const Case&) const = default;
};

// "256 x 4 KiB", "64 MiB".
std::string shape_of(const Case& tested);
std::string bytes_text(uint64_t bytes);

// One line that both processes understand, and back.
std::string to_line(const Case& tested);
Result<Case> case_from_line(std::string_view line);

enum class Side { local, remote };

// Where the blocks of one thread's transfer lie in a pool of `pool` bytes: the same answer in every process. Each
// thread has its own part of the pool. REQUIRES: fits().
std::vector<uint64_t> block_offsets(const Case& tested, Side side, int thread, uint64_t pool);
bool fits(const Case& tested, uint64_t pool);

// The cases of the figures that the project has set itself, and the few of them that a glance needs.
std::vector<Case> goal_cases(bool quick);

}  // namespace kvferry::bench
