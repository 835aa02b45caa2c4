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

void ParcelOwner::on_check(const ReaderKey& reader, const proto::Check& check) {
  const auto found = claims_.find({reader, check.number()});
  if (found == claims_.end() || found->second->state != ClaimState::granted) return;
  const ClaimPtr claim = found->second;
  if (!claim->parcel->digest || check.generation() != claim->parcel->generation || claim->check) return;
  if (check.selection().size() > kMaxSelectionBytes) return;
  start_check(claim, check.selection());
}

// I2: nothing is read for it any more when this returns.
std::unique_ptr<ParcelOwner::Check> ParcelOwner::take_check(Claim& claim) {
  if (claim.check && claim.check->run) claim.check->run->stop();
  return std::exchange(claim.check, nullptr);
}

// The digest of what the claim selects, from this engine's own memory. The parcel's end stops the reading.
void ParcelOwner::start_check(const ClaimPtr& claim, const std::string& selection) {
  claim->check = std::make_unique<Check>();
  claim->check->selection = selection;
  if (std::exchange(claim->check_queued, true)) return;
  tables_.run(claim->key.reader, [this, claim] {
    claim->check_queued = false;
    if (claim->state == ClaimState::granted && claim->check && !claim->check->begun) begin_check(claim);
  });
}

void ParcelOwner::begin_check(const ClaimPtr& claim) {
  claim->check->begun = true;
  auto bytes = bytes_of(*claim->parcel, claim->check->selection);
  if (!bytes || bytes->ops == nullptr) {
    claim->check->digest.emplace(bytes ? Result<uint64_t>(Digest().value()) : std::move(bytes).error());
    if (claim->check->asked) judge_digest(claim);
    return;
  }
  const auto pins = std::make_shared<std::vector<RegionPin>>(std::move(bytes->pins));
  const auto weak = std::weak_ptr<Claim>(claim);
  auto run = DigestRun::start(parts_.loop, parts_.lanes.staging(), *bytes->ops, std::move(bytes->walk),
                              [this, weak, pins, check = claim->check.get()](Result<uint64_t> digest) {
                                const ClaimPtr held = weak.lock();
                                if (held == nullptr || held->check.get() != check) return;
                                check->digest.emplace(std::move(digest));
                                if (check->asked) judge_digest(held);
                              });
  if (!run->over()) claim->check->run = std::move(run);
}

// One-sided: the reader has told the digest of what it read. Until the owner has its own the claim lives.
void ParcelOwner::check_digest(const ClaimPtr& claim, const proto::Settle& asked) {
  if (asked.selection().size() > kMaxSelectionBytes)
    return settle(claim, asked, Error{ErrorCode::invalid_argument, "a selection longer than any valid one"});
  if (!claim->check || claim->check->selection != asked.selection()) {
    take_check(*claim);
    start_check(claim, asked.selection());
  }
  proto::Settle& kept = claim->check->asked.emplace();  // not what else it may carry (I6)
  kept.set_number(asked.number());
  kept.set_generation(asked.generation());
  kept.set_digest(asked.digest());
  kept.set_more(asked.more());
  if (claim->check->digest) judge_digest(claim);
}

void ParcelOwner::judge_digest(const ClaimPtr& claim) {
  const Result<uint64_t> digest = *claim->check->digest;
  const proto::Settle asked = *claim->check->asked;
  Status verdict;
  if (!digest)
    verdict = digest.error();
  else if (*digest != asked.digest())
    verdict = Error{ErrorCode::stale, "the digest of what was read differs"};
  settle(claim, asked, std::move(verdict));
}

}  // namespace kvferry
