#include "engine/bench/cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <sstream>

#include "common/random.h"

namespace kvferry::bench {
namespace {

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = kKiB * 1024;
constexpr uint64_t kGiB = kMiB * 1024;
// Scattered blocks are drawn from this many times as many places, where the pool has them.
constexpr uint64_t kSpread = 8;

uint64_t part_of_thread(const Case& tested, uint64_t pool) {
  return pool / static_cast<uint64_t>(tested.threads) / tested.block * tested.block;
}

}  // namespace

std::string bytes_text(uint64_t bytes) {
  if (bytes >= kGiB && bytes % kGiB == 0) return fmt::format("{} GiB", bytes / kGiB);
  if (bytes >= kMiB && bytes % kMiB == 0) return fmt::format("{} MiB", bytes / kMiB);
  if (bytes >= kKiB && bytes % kKiB == 0) return fmt::format("{} KiB", bytes / kKiB);
  return fmt::format("{} B", bytes);
}

std::string shape_of(const Case& tested) {
  return tested.count == 1 ? bytes_text(tested.block) : fmt::format("{} x {}", tested.count, bytes_text(tested.block));
}

std::string to_line(const Case& tested) {
  return fmt::format("{} {} {} {} {} {}", tested.fabric, tested.operation == Operation::read ? "read" : "write",
                     tested.block, tested.count, tested.scattered ? "scattered" : "contiguous", tested.threads);
}

Result<Case> case_from_line(std::string_view line) {
  std::istringstream words{std::string(line)};
  Case tested;
  std::string operation;
  std::string layout;
  words >> tested.fabric >> operation >> tested.block >> tested.count >> layout >> tested.threads;
  if (!words || (operation != "read" && operation != "write") || (layout != "scattered" && layout != "contiguous") ||
      tested.block == 0 || tested.count == 0 || tested.threads < 1)
    return Error{ErrorCode::invalid_argument, fmt::format("no case: \"{}\"", line)};
  tested.operation = operation == "read" ? Operation::read : Operation::write;
  tested.scattered = layout == "scattered";
  return tested;
}

bool fits(const Case& tested, uint64_t pool) {
  return tested.bytes() <= part_of_thread(tested, pool);
}

std::vector<uint64_t> block_offsets(const Case& tested, Side side, int thread, uint64_t pool) {
  const uint64_t part = part_of_thread(tested, pool);
  const uint64_t first = part * static_cast<uint64_t>(thread);
  std::vector<uint64_t> places(tested.count);
  if (tested.scattered && tested.count > 1) {
    places.resize(std::min<uint64_t>(part / tested.block, kSpread * tested.count));
    std::iota(places.begin(), places.end(), 0);
    SeededRandom random(static_cast<uint64_t>(thread) * 2 + (side == Side::local ? 1 : 2));
    for (size_t i = 0; i < tested.count; ++i) std::swap(places[i], places[i + random.below(places.size() - i)]);
    places.resize(tested.count);
  } else {
    std::iota(places.begin(), places.end(), 0);
  }
  for (uint64_t& place : places) place = first + place * tested.block;
  return places;
}

std::vector<Case> goal_cases(bool quick) {
  struct Shape {
    const char* fabric;
    uint64_t block;
    size_t count;
    bool quick;
  };
  const Shape shapes[] = {
      {"local", 4 * kKiB, 1, true},     {"local", 4 * kKiB, 256, true}, {"local", 16 * kKiB, 256, false},
      {"local", 4 * kKiB, 2048, false}, {"local", 64 * kMiB, 1, true},  {"tcp", 4 * kKiB, 1, true},
      {"tcp", 4 * kKiB, 256, true},     {"tcp", 16 * kKiB, 256, false}, {"tcp", 64 * kKiB, 256, false},
      {"tcp", 4 * kKiB, 2048, false},   {"tcp", 64 * kMiB, 1, true},    {"tcp", kGiB, 1, false},
  };
  std::vector<Case> cases;
  for (const Shape& shape : shapes) {
    if (quick && !shape.quick) continue;
    for (const Operation operation : {Operation::read, Operation::write})
      cases.push_back({shape.fabric, operation, shape.block, shape.count, true, 1});
  }
  return cases;
}

}  // namespace kvferry::bench
