#include <fmt/format.h>

#include "engine/parcel/owner.h"

// What a claim takes of its parcel, found in this engine's memory, and its digest.

namespace kvferry {

Result<ParcelOwner::Bytes> ParcelOwner::bytes_of(const Parcel& parcel, const std::string& selection) const {
  KVF_ASSIGN_OR_RETURN(const Selection wanted, decode_selection(as_bytes(selection)));
  for (const SelectionPart& part : wanted.parts)
    if (part.end_token > parcel.tokens)
      return Error{ErrorCode::invalid_argument,
                   fmt::format("the selection ends at token {}, the parcel covers {}", part.end_token, parcel.tokens)};
  auto spans = owner_spans(wanted, CacheSide{&layout_, parcel.blocks}, limits_.spans_per_claim);
  if (!spans) {
    if (spans.error().code == ErrorCode::resource_exhausted) refused("spans_per_claim");
    return std::move(spans).error();
  }
  Bytes bytes;
  std::vector<const RegionState*> regions;
  for (const RegionId region : spans->regions(0)) {
    KVF_ASSIGN_OR_RETURN(RegionPin pin, parts_.registry.pin_remote(region, kPrivate));
    regions.push_back(pin.get());
    bytes.pins.push_back(std::move(pin));
    bytes.ops = cache_ops_;
  }
  bytes.walk = CacheWalk(std::move(*spans), std::move(regions));
  return bytes;
}

// One-sided: the reader has told the digest of what it read; the owner reads the same bytes of its own memory. The
// verdict follows; until then the claim lives, and the parcel's end stops the reading.
void ParcelOwner::check_digest(const ClaimPtr& claim, const proto::Settle& asked) {
  if (claim->checking) return;  // asked again after a reconnect: the answer goes to the session that spoke last
  auto bytes = bytes_of(*claim->parcel, asked.selection());
  if (!bytes) return settle(claim, asked, std::move(bytes).error());
  if (bytes->ops == nullptr) return settle(claim, asked, {});  // nothing was read
  const auto pins = std::make_shared<std::vector<RegionPin>>(std::move(bytes->pins));
  auto run = DigestRun::start(parts_.loop, parts_.lanes.staging(), *bytes->ops, std::move(bytes->walk),
                              [this, weak = std::weak_ptr<Claim>(claim), asked, pins](const Result<uint64_t>& digest) {
                                const ClaimPtr held = weak.lock();
                                if (held == nullptr || held->state != ClaimState::granted) return;
                                Status verdict;
                                if (!digest)
                                  verdict = digest.error();
                                else if (*digest != asked.digest())
                                  verdict = Error{ErrorCode::stale, "the digest of what was read differs"};
                                settle(held, asked, std::move(verdict));
                              });
  if (!run->over()) claim->checking = std::move(run);
}

}  // namespace kvferry
