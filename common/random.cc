#include "common/random.h"

#include <sys/random.h>

#include <algorithm>
#include <cstring>

#include "common/check.h"

namespace kvferry {

uint64_t Random::below(uint64_t bound) {
  KVF_CHECK(bound > 0);
  return static_cast<uint64_t>((static_cast<unsigned __int128>(next()) * bound) >> 64);
}

std::string Random::token(size_t bytes) {
  std::string out(bytes, '\0');
  for (size_t at = 0; at < bytes; at += sizeof(uint64_t)) {
    const uint64_t word = next();
    std::memcpy(out.data() + at, &word, std::min(sizeof word, bytes - at));
  }
  return out;
}

uint64_t SystemRandom::next() {
  uint64_t word = 0;
  KVF_CHECK(getrandom(&word, sizeof word, 0) == static_cast<ssize_t>(sizeof word));
  return word;
}

uint64_t SeededRandom::next() {
  uint64_t word = (state_ += 0x9e3779b97f4a7c15u);
  word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u;
  word = (word ^ (word >> 27)) * 0x94d049bb133111ebu;
  return word ^ (word >> 31);
}

}  // namespace kvferry
