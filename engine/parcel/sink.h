#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/fabric/tcp/fetch_path.h"
#include "engine/memory/staging.h"
#include "engine/parcel/cache_walk.h"
#include "engine/parcel/digest.h"

namespace kvferry {

// Where one claim's stream lands in the reader's cache: straight in memory that the CPU can touch; in other memory by
// way of staging buffers, of which the next fills while the last is copied. On loop only.
class ParcelSink final : public tcp::FetchSink, public std::enable_shared_from_this<ParcelSink> {
 public:
  struct Parts {
    Staging& staging;  // outlives the sink
    MemoryOps& ops;    // of the cache
    CacheWalk target;
    std::function<void(ByteSpan head)> head;
    std::function<void(Result<std::string> trailer)> ended;
    Task go_on;  // lets the fetch go on after on_filled() said no
  };
  explicit ParcelSink(Parts parts) : parts_(std::move(parts)) {}

  // Before the first byte.
  void want_digest() { digest_.emplace(); }
  uint64_t left() const { return parts_.target.left(); }  // bytes that have not come
  // Of everything that came.
  uint64_t digest() const { return digest_ ? digest_->value() : 0; }
  // I4: nothing lands any more when this returns, and nothing is called back.
  void stop();

  void on_head(ByteSpan head) override;
  Result<std::vector<iovec>> place(uint64_t bytes) override;
  bool on_filled() override;
  void on_end(Result<std::string> trailer) override;

 private:
  static constexpr size_t kCopies = 2;  // into the device at a time; and one buffer fills meanwhile (I6)

  void on_landed(const Status& status);
  void end();

  Parts parts_;
  std::vector<iovec> placed_;  // of the piece that is coming: where it is to be in the cache
  Staging::Buffer buffer_;     // where it comes, if not there
  size_t copying_ = 0;
  bool holding_ = false;
  bool stopped_ = false;
  Status failure_;
  std::optional<Digest> digest_;
  std::optional<Result<std::string>> trailer_;  // waits for the copies
};

}  // namespace kvferry
