#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/parcel/digest.h"
#include "engine/parcel/owner.h"

namespace kvferry {

// The bytes of one claim as one stream: ticket, payload in the canonical order of the selection, verdict. Memory that
// the CPU cannot touch is copied to staging buffers a little ahead of what is sent. On loop only.
class ParcelStream final : public tcp::FetchSource, public std::enable_shared_from_this<ParcelStream> {
 public:
  ParcelStream(ParcelOwner& owner, std::string ticket, std::string transfer_id, uint64_t number, bool digest,
               ParcelOwner::Bytes bytes);
  ~ParcelStream() override;

  // I2: no byte of the parcel leaves any more; the trailer says `stale`.
  void stop();

  std::string head() override { return ticket_; }
  bool ready() const override;
  Piece next(uint64_t max_bytes) override;
  bool at_end() const override { return stopped_ || !failure_.ok() || (bytes_.at_end() && staged_.empty()); }
  std::string trailer() override;

  // Starts what makes it ready().
  void begin();

 private:
  static constexpr size_t kAhead = 2;  // pieces that are staged or being staged (I6)
  struct Staged {
    Staging::Buffer buffer;
    bool landed = false;
  };
  using StagedPtr = std::shared_ptr<Staged>;

  void stage_ahead();
  void stage(const StagedPtr& piece, const std::vector<iovec>& parts, Staging::Buffer buffer);
  void on_staged(Staged& piece, const Status& status);

  ParcelOwner& owner_;
  const std::shared_ptr<bool> owner_alive_;
  const std::string ticket_;
  const std::string transfer_id_;
  const uint64_t number_;
  MemoryOps* const ops_;  // null: no bytes
  CacheWalk bytes_;
  std::vector<RegionPin> pins_;
  std::deque<StagedPtr> staged_;  // in the order of the bytes
  bool stopped_ = false;
  Status failure_;
  std::optional<Digest> digest_;
};

}  // namespace kvferry
