#include "engine/parcel/digest.h"

#include <xxhash.h>

#include "common/check.h"

namespace kvferry {

Digest::Digest() : state_(XXH3_createState()) {
  KVF_CHECK(state_ != nullptr);
  XXH3_64bits_reset(state_);
}

Digest::~Digest() {
  XXH3_freeState(state_);
}

void Digest::add(std::span<const iovec> pieces) {
  for (const iovec& piece : pieces) XXH3_64bits_update(state_, piece.iov_base, piece.iov_len);
}

uint64_t Digest::value() const {
  return XXH3_64bits_digest(state_);
}

}  // namespace kvferry
