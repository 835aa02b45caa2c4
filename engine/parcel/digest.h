#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <span>

struct XXH3_state_s;

namespace kvferry {

// XXH3-64 over the bytes of a selection in canonical order.
class Digest {
 public:
  Digest();
  ~Digest();
  Digest(const Digest&) = delete;
  Digest& operator=(const Digest&) = delete;

  void add(std::span<const iovec> pieces);
  uint64_t value() const;

 private:
  XXH3_state_s* state_;
};

}  // namespace kvferry
