#include "engine/parcel/cache_walk.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvferry {

Result<std::byte*> CacheWalk::place(const CacheSpans::Span& span) {
  if (last_ == nullptr || last_->info.id != span.region[0]) {
    const auto found = std::find_if(regions_.begin(), regions_.end(),
                                    [&](const RegionState* one) { return one->info.id == span.region[0]; });
    if (found == regions_.end())
      return Error{ErrorCode::not_found, fmt::format("region {} of the cache is not registered", span.region[0])};
    last_ = *found;
  }
  KVF_RETURN_IF_ERROR(check_span(last_->info, span.offset[0], span.length));
  return last_->at(span.offset[0]);
}

Result<std::vector<iovec>> CacheWalk::take(uint64_t max_bytes) {
  std::vector<iovec> taken;
  while (max_bytes > 0 && left_ > 0) {
    if (rest_.iov_len == 0) {
      CacheSpans::Span span;
      const bool more = cursor_.next(span);
      KVF_CHECK(more);
      KVF_ASSIGN_OR_RETURN(std::byte* const at, place(span));
      rest_ = {at, span.length};
    }
    const size_t count = std::min<uint64_t>(max_bytes, rest_.iov_len);
    taken.push_back({rest_.iov_base, count});
    rest_ = {static_cast<std::byte*>(rest_.iov_base) + count, rest_.iov_len - count};
    max_bytes -= count;
    left_ -= count;
  }
  return taken;
}

}  // namespace kvferry
