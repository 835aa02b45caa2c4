#include "engine/parcel/stream.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/session/messages.h"

namespace kvferry {

ParcelStream::ParcelStream(ParcelOwner& owner, std::string ticket, std::string transfer_id, uint64_t number,
                           uint64_t generation, bool digest, std::vector<iovec> payload, std::vector<RegionPin> pins)
    : owner_(owner),
      owner_alive_(owner.alive_),
      ticket_(std::move(ticket)),
      transfer_id_(std::move(transfer_id)),
      number_(number),
      generation_(generation),
      payload_(std::move(payload)),
      pins_(std::move(pins)),
      wants_digest_(digest) {}

ParcelStream::~ParcelStream() {
  if (!*owner_alive_) return;
  const auto found = owner_.parcels_.find(transfer_id_);
  if (found != owner_.parcels_.end()) found->second->streams.erase(this);
}

void ParcelStream::stop() {
  stopped_ = true;
  owner_.parts_.lanes.stop(*this);
  pins_.clear();
}

std::vector<iovec> ParcelStream::next(uint64_t max_bytes) {
  std::vector<iovec> piece;
  for (uint64_t taken = 0; !at_end() && taken < max_bytes;) {
    iovec& rest = payload_[index_];
    const size_t count = std::min<uint64_t>(rest.iov_len, max_bytes - taken);
    piece.push_back({rest.iov_base, count});
    taken += count;
    rest.iov_base = static_cast<char*>(rest.iov_base) + count;
    rest.iov_len -= count;
    if (rest.iov_len == 0) ++index_;
  }
  if (wants_digest_) digest_.add(piece);
  return piece;
}

// Asked for when the last bytes are queued, and again if the parcel ends before they have left: `valid` is true of
// every byte that went before it on this lane (I1).
std::string ParcelStream::trailer() {
  proto::Verdict verdict;
  verdict.set_number(number_);
  if (stopped_) {
    verdict.set_code(static_cast<uint32_t>(ErrorCode::stale));
    verdict.set_message("the parcel was given back while it was read");
  } else if (wants_digest_) {
    verdict.set_digest(digest_.value());
  }
  return verdict.SerializeAsString();
}

// ---- the owner's part of it

Result<CacheSpans> ParcelOwner::spans_of(const Parcel& parcel, const std::string& bytes) const {
  KVF_ASSIGN_OR_RETURN(const Selection selection, decode_selection(as_bytes(bytes)));
  for (const SelectionPart& part : selection.parts)
    if (part.end_token > parcel.tokens)
      return Error{ErrorCode::invalid_argument,
                   fmt::format("the selection ends at token {}, the parcel covers {}", part.end_token, parcel.tokens)};
  return owner_spans(selection, CacheSide{&layout_, parcel.blocks}, limits_.spans_per_claim);
}

void ParcelOwner::on_fetch(Guest& guest, ByteSpan request, Answer answer) {
  proto::Claim asked;
  if (!asked.ParseFromArray(request.data(), static_cast<int>(request.size())))
    return answer(Error{ErrorCode::protocol, "fetch that cannot be parsed"});
  const ReaderKey reader{guest.engine_id(), guest.incarnation()};
  on_claim(reader, asked, [this, alive = alive_, selection = asked.selection(), answer](Result<ClaimPtr> granted) {
    if (!granted) return answer(std::move(granted).error());
    const ClaimPtr claim = *granted;
    Parcel& parcel = *claim->parcel;
    auto spans = spans_of(parcel, selection);
    if (!spans) {
      Error why = spans.error();
      fail_claim(claim, false);
      return answer(std::move(why));
    }
    std::vector<iovec> payload;
    std::vector<RegionPin> pins;
    Status status;
    spans->for_each([&](const CacheSpans::Span& span) {
      if (!status.ok()) return;
      if (pins.empty() || pins.back()->info.id != span.region[0]) {
        auto pin = parts_.registry.pin_remote(span.region[0], kPrivate);
        if (!pin) {
          status = pin.error();
          return;
        }
        pins.push_back(std::move(*pin));
      }
      status = check_span(pins.back()->info, span.offset[0], span.length);
      if (!pins.back()->ops->host_addressable())
        status = Error{ErrorCode::unsupported, "parcels in device memory are not streamed yet"};
      payload.push_back({pins.back()->at(span.offset[0]), span.length});
    });
    if (!status.ok()) {
      fail_claim(claim, false);
      return answer(status.error());
    }
    auto stream = std::make_shared<ParcelStream>(*this, ticket_of(*claim, parcel).SerializeAsString(), parcel.id,
                                                 claim->key.number, parcel.generation, parcel.digest,
                                                 std::move(payload), std::move(pins));
    parcel.streams.insert(stream.get());
    answer(std::shared_ptr<tcp::FetchSource>(std::move(stream)));
  });
}

// One-sided: the reader has told what it read; the owner reads the same bytes of its own memory.
Status ParcelOwner::check_digest(const Claim& claim, const proto::Settle& settle) const {
  KVF_ASSIGN_OR_RETURN(const CacheSpans spans, spans_of(*claim.parcel, settle.selection()));
  Digest digest;
  Status status;
  spans.for_each([&](const CacheSpans::Span& span) {
    auto pin = parts_.registry.pin_remote(span.region[0], kPrivate);
    if (!pin || !(*pin)->ops->host_addressable()) {
      status = Error{ErrorCode::unsupported, "the bytes cannot be checked again"};
      return;
    }
    const iovec piece{(*pin)->at(span.offset[0]), span.length};
    digest.add({&piece, 1});
  });
  KVF_RETURN_IF_ERROR(status);
  if (digest.value() != settle.digest()) return Error{ErrorCode::stale, "the digest of what was read differs"};
  return {};
}

}  // namespace kvferry
