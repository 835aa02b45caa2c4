#pragma once

#include <span>
#include <vector>

#include "engine/parcel/span_table.h"

namespace kvferry {

// Which bytes of which owner ranks make up one reader rank's share of a parcel. Pure: layouts and block ids in, spans
// out. The rules are told in docs/kv-layout.md.

struct ReaderRequest {
  CacheSide cache;
  uint32_t first_token = 0;  // what lies before is in the reader's cache already
  uint32_t end_token = 0;    // tokens covered by the parcel
};

// What the reader takes from one owner rank; nothing, where the claim is only settled.
struct OwnerShare {
  RankId owner;
  Selection selection;
  CachePairs pairs;  // none from plan_selections()
};

struct ReshardPlan {
  std::vector<OwnerShare> shares;  // one for each of owners_to_settle(), in its order
  uint64_t bytes() const;
};

// `owners` are the ranks of one owner instance (of one data-parallel rank of it) whose tickets are at hand, with the
// blocks in each; ranks that the reader takes nothing from may be left out. Refused, by name: layers missing on either
// side, groups whose shapes differ, tokens without a block on either side (but for those that a sliding window no
// longer needs), a needed rank that is not among `owners`, more than `max_spans` spans. REQUIRES validated layouts.
Result<ReshardPlan> plan_reshard(std::span<const CacheSide> owners, const ReaderRequest& reader,
                                 size_t max_spans = kMaxSpans);

// The selections alone, without pairs, before any ticket: the owners' blocks are not looked at, and taken to hold every
// token.
Result<ReshardPlan> plan_selections(std::span<const CacheSide> owners, const ReaderRequest& reader);

}  // namespace kvferry
