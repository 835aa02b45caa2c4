#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/parcel/digest.h"
#include "engine/parcel/owner.h"

namespace kvferry {

// The bytes of one claim as one stream: ticket, payload in the canonical order of the selection, verdict. On loop only.
class ParcelStream final : public tcp::FetchSource {
 public:
  ParcelStream(ParcelOwner& owner, std::string ticket, std::string transfer_id, uint64_t number, uint64_t generation,
               bool digest, std::vector<iovec> payload, std::vector<RegionPin> pins);
  ~ParcelStream() override;

  // I2: no byte of the parcel leaves any more; the trailer says `stale`.
  void stop();

  std::string head() override { return ticket_; }
  std::vector<iovec> next(uint64_t max_bytes) override;
  bool at_end() const override { return stopped_ || index_ == payload_.size(); }
  std::string trailer() override;

 private:
  ParcelOwner& owner_;
  const std::shared_ptr<bool> owner_alive_;
  const std::string ticket_;
  const std::string transfer_id_;
  const uint64_t number_;
  const uint64_t generation_;
  std::vector<iovec> payload_;
  std::vector<RegionPin> pins_;
  size_t index_ = 0;
  bool stopped_ = false;
  bool wants_digest_;
  Digest digest_;
};

}  // namespace kvferry
