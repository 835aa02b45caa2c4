#include "test/simulator/memory_book.h"

#include <algorithm>

namespace kvferry::simulator {
namespace {

uint64_t word_of(uint64_t tag, uint64_t index) {
  uint64_t word = (tag + 1) * 0x9e3779b97f4a7c15u + index * 0xbf58476d1ce4e5b9u;
  word = (word ^ (word >> 29)) * 0x94d049bb133111ebu;
  return word ^ (word >> 32);
}

// Calls each(place, bytes of the pattern, count) in pieces of at most a word. False as soon as one call is.
template <class Each>
bool for_each_word(size_t length, uint64_t tag, uint64_t offset, Each each) {
  for (size_t done = 0; done < length;) {
    const uint64_t index = (offset + done) / 8;
    const size_t skip = (offset + done) % 8;
    const size_t count = std::min<size_t>(8 - skip, length - done);
    const uint64_t word = word_of(tag, index);
    if (!each(done, reinterpret_cast<const std::byte*>(&word) + skip, count)) return false;
    done += count;
  }
  return true;
}

}  // namespace

void fill_pattern(std::byte* at, size_t length, uint64_t tag, uint64_t offset) {
  for_each_word(length, tag, offset, [at](size_t place, const std::byte* bytes, size_t count) {
    std::memcpy(at + place, bytes, count);
    return true;
  });
}

bool is_pattern(const std::byte* at, size_t length, uint64_t tag, uint64_t offset) {
  return for_each_word(length, tag, offset, [at](size_t place, const std::byte* bytes, size_t count) {
    return std::memcmp(at + place, bytes, count) == 0;
  });
}

void fill_poison(std::byte* at, size_t length) {
  std::memset(at, 0xDB, length);
}

void MemoryBook::watch(const SimEngine& engine, const std::byte* at, size_t length, TimePoint until, std::string what,
                       Task released) {
  watches_[engine.host()].push_back(
      Watch{at, std::vector<std::byte>(at, at + length), until, std::move(what), std::move(released)});
}

void MemoryBook::forget(const SimEngine& engine, const std::byte* at, size_t length) {
  std::erase_if(watches_[engine.host()], [&](const Watch& watch) { return watch.at >= at && watch.at < at + length; });
}

void MemoryBook::after_turn(const SimEngine& engine) {
  look(engine, ++turns_[engine.host()] % 8 == 0);
}

void MemoryBook::look(const SimEngine& engine, bool all) {
  auto& watches = watches_[engine.host()];
  for (auto watch = watches.begin(); watch != watches.end();) {
    if (!all && world_.now() < watch->until) {
      ++watch;
      continue;
    }
    if (std::memcmp(watch->at, watch->expected.data(), watch->expected.size()) != 0) {
      const auto differs = std::mismatch(watch->expected.begin(), watch->expected.end(), watch->at);
      return world_.fail("I4: quiet memory of {} changed at byte {} of {}: {}", engine.name(),
                         differs.first - watch->expected.begin(), watch->expected.size(), watch->what);
    }
    if (world_.now() < watch->until) {
      ++watch;
      continue;
    }
    const Task released = std::move(watch->released);
    watch = watches.erase(watch);
    if (released) released();
  }
}

}  // namespace kvferry::simulator
