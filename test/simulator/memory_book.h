#pragma once

#include <cstring>
#include <list>
#include <string>
#include <vector>

#include "test/simulator/world.h"

namespace kvferry::simulator {

// Bytes that tell whose they are: each tag has its own, different at every offset.
void fill_pattern(std::byte* at, size_t length, uint64_t tag, uint64_t offset);
bool is_pattern(const std::byte* at, size_t length, uint64_t tag, uint64_t offset);
void fill_poison(std::byte* at, size_t length);

// A registered range of an engine, cut into slots that are used one transfer at a time.
struct Area {
  enum class Role : uint8_t { source, target, local };
  Role role = Role::source;
  std::byte* base = nullptr;
  size_t slot_bytes = 0;
  RegionInfo region;        // the last registration
  bool registered = false;  // false from the call of unregister on
  uint64_t epoch = 0;       // registrations and lives so far: what an earlier one held is void
  uint64_t tag = 0;         // of a source's pattern
  std::vector<bool> busy;

  size_t bytes() const { return slot_bytes * busy.size(); }
  std::byte* slot(size_t index) const { return base + index * slot_bytes; }
};

// I4: memory of an engine that nobody may touch, with what it must hold. Only the engine's own turns can change it, and
// what they change stays changed: nobody else writes there while it is watched. So most turns look at what ends alone.
class MemoryBook {
 public:
  explicit MemoryBook(World& world) : world_(world), watches_(world.engines()), turns_(world.engines()) {}

  // From now on until `until` of the timeline these bytes stay as they are; then `released` is called.
  void watch(const SimEngine& engine, const std::byte* at, size_t length, TimePoint until, std::string what,
             Task released);
  // Watches inside of this range end without being released.
  void forget(const SimEngine& engine, const std::byte* at, size_t length);
  void forget_all(const SimEngine& engine) { watches_[engine.host()].clear(); }
  // Looks at the watches that end now, and in every eighth turn of the engine at all of them.
  void after_turn(const SimEngine& engine);
  void check(const SimEngine& engine) { look(engine, true); }
  size_t watches(const SimEngine& engine) const { return watches_[engine.host()].size(); }

 private:
  struct Watch {
    const std::byte* at;
    std::vector<std::byte> expected;
    TimePoint until;
    std::string what;
    Task released;
  };
  void look(const SimEngine& engine, bool all);

  World& world_;
  std::vector<std::list<Watch>> watches_;  // by host
  std::vector<uint64_t> turns_;            // by host
};

}  // namespace kvferry::simulator
