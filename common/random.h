#pragma once

#include <cstdint>
#include <string>

#include "common/api.h"

namespace kvferry {

// Where incarnations, tokens, ids and jitter come from: the kernel in production, a seed in tests and the simulator.
class Random {
 public:
  virtual ~Random() = default;
  virtual uint64_t next() = 0;

  // Uniform in [0, bound); bound > 0.
  uint64_t below(uint64_t bound);
  // `bytes` random bytes, for tokens.
  std::string token(size_t bytes);
};

// getrandom(2). Thread-safe.
class KVFERRY_API SystemRandom final : public Random {
 public:
  uint64_t next() override;
};

// splitmix64: the same numbers for the same seed, for ever. Not for secrets; not thread-safe.
class KVFERRY_API SeededRandom final : public Random {
 public:
  explicit SeededRandom(uint64_t seed) : state_(seed) {}
  uint64_t next() override;

 private:
  uint64_t state_;
};

}  // namespace kvferry
