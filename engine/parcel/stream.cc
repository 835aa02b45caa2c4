#include "engine/parcel/stream.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/session/messages.h"
#include "proto/parse.h"

namespace kvferry {

ParcelStream::ParcelStream(ParcelOwner& owner, std::string ticket, std::string transfer_id, uint64_t number,
                           bool digest, ParcelOwner::Bytes bytes)
    : owner_(owner),
      owner_alive_(owner.alive_),
      ticket_(std::move(ticket)),
      transfer_id_(std::move(transfer_id)),
      number_(number),
      ops_(bytes.ops),
      bytes_(std::move(bytes.walk)),
      pins_(std::move(bytes.pins)) {
  if (digest) digest_.emplace();
}

ParcelStream::~ParcelStream() {
  if (!*owner_alive_) return;
  const auto found = owner_.parcels_.find(transfer_id_);
  if (found != owner_.parcels_.end()) found->second->streams.erase(this);
  // I2, I4: the parcel and the region no longer know of a copy that may still run.
  const bool copying = std::any_of(staged_.begin(), staged_.end(),
                                   [](const StagedPtr& piece) { return !piece->landed && piece->buffer; });
  if (copying) owner_.parts_.lanes.staging().drain();
}

void ParcelStream::stop() {
  stopped_ = true;
  owner_.parts_.lanes.stop(*this);
  if (!staged_.empty()) owner_.parts_.lanes.staging().drain();
  staged_.clear();
  bytes_ = CacheWalk();
  pins_.clear();
  if (ops_ == nullptr || ops_->host_addressable()) return;
  // It may wait for a copy. Later: sending may lose a lane, and other streams of the parcel with it.
  owner_.parts_.loop.defer([weak = weak_from_this()] {
    const auto self = weak.lock();
    if (self != nullptr && *self->owner_alive_) self->owner_.parts_.lanes.resume(*self);
  });
}

bool ParcelStream::ready() const {
  if (at_end() || ops_ == nullptr || ops_->host_addressable()) return true;
  return !staged_.empty() && staged_.front()->landed;
}

ParcelStream::Piece ParcelStream::next(uint64_t max_bytes) {
  Piece piece;
  if (at_end()) return piece;
  if (ops_->host_addressable()) {
    auto bytes = bytes_.take(max_bytes);
    if (!bytes) {
      failure_ = std::move(bytes).error();
      return piece;
    }
    piece.bytes = std::move(*bytes);
  } else {
    piece.staging = std::move(staged_.front()->buffer);
    KVF_CHECK(piece.staging.size() <= max_bytes);
    piece.bytes = {{piece.staging.data(), piece.staging.size()}};
    staged_.pop_front();
    stage_ahead();
  }
  if (digest_) digest_->add(piece.bytes);
  return piece;
}

void ParcelStream::begin() {
  if (ops_ != nullptr && !ops_->host_addressable()) stage_ahead();
}

void ParcelStream::stage_ahead() {
  while (failure_.ok() && staged_.size() < kAhead && !bytes_.at_end()) {
    auto taken = bytes_.take(tcp::Owner::kPieceBytes);
    if (!taken) {
      failure_ = std::move(taken).error();
      return;
    }
    const std::vector<iovec> parts = std::move(*taken);
    uint64_t bytes = 0;
    for (const iovec& part : parts) bytes += part.iov_len;
    auto piece = std::make_shared<Staged>();
    staged_.push_back(piece);
    owner_.parts_.lanes.staging().acquire(*ops_, bytes,
                                          [weak = weak_from_this(), piece, parts](Result<Staging::Buffer> acquired) {
                                            const auto self = weak.lock();
                                            if (self == nullptr || self->stopped_ || !self->failure_.ok()) return;
                                            if (!acquired) return self->on_staged(*piece, std::move(acquired).error());
                                            self->stage(piece, parts, std::move(*acquired));
                                          });
  }
}

void ParcelStream::stage(const StagedPtr& piece, const std::vector<iovec>& parts, Staging::Buffer buffer) {
  std::vector<CopySpan> copies;
  std::byte* into = buffer.data();
  for (const iovec& part : parts) {
    copies.push_back({static_cast<std::byte*>(part.iov_base), into, part.iov_len});
    into += part.iov_len;
  }
  piece->buffer = std::move(buffer);
  owner_.parts_.lanes.staging().copy(*ops_, CopyDirection::to_host, copies,
                                     [weak = weak_from_this(), piece](const Status& status) {
                                       piece->landed = true;
                                       const auto self = weak.lock();
                                       if (self != nullptr && !self->stopped_) self->on_staged(*piece, status);
                                     });
}

void ParcelStream::on_staged(Staged& piece, const Status& status) {
  if (!status.ok()) {
    failure_ = status;
    piece.buffer.release();
  }
  if (*owner_alive_ && ready()) owner_.parts_.lanes.resume(*this);
}

// Asked for when the last bytes are queued, and again if the parcel ends before they have left: `valid` is true of
// every byte that went before it on this lane (I1).
std::string ParcelStream::trailer() {
  proto::Verdict verdict;
  verdict.set_number(number_);
  if (stopped_) {
    verdict.set_code(static_cast<uint32_t>(ErrorCode::stale));
    verdict.set_message("the parcel was given back while it was read");
  } else if (!failure_.ok()) {
    verdict.set_code(static_cast<uint32_t>(failure_.error().code));
    verdict.set_message("the owner cannot read the parcel: " + failure_.error().to_string());
  } else if (digest_) {
    verdict.set_digest(digest_->value());
  }
  return verdict.SerializeAsString();
}

// ---- the owner's part of it

void ParcelOwner::on_fetch(Guest& guest, ByteSpan request, Answer answer) {
  proto::Claim asked;
  if (!proto::parse(asked, request)) return answer(Error{ErrorCode::protocol, "fetch that cannot be parsed"});
  if (asked.selection().size() > kMaxSelectionBytes)
    return answer(Error{ErrorCode::invalid_argument, "fetch with a selection longer than any valid one"});
  on_claim(guest, asked, [this, selection = asked.selection(), answer](Result<ClaimPtr> granted) {
    if (!granted) return answer(std::move(granted).error());
    const ClaimPtr claim = *granted;
    if (++claim->fetches > limits_.fetches_per_claim) {
      fail_claim(claim, false);
      return answer(full("fetches_per_claim", limits_.fetches_per_claim));
    }
    tables_.run(claim->key.reader, [this, claim, selection, answer] { open_stream(claim, selection, answer); });
  });
}

void ParcelOwner::open_stream(const ClaimPtr& claim, const std::string& selection, const Answer& answer) {
  if (claim->state != ClaimState::granted) return answer(Error{ErrorCode::gone, "this claim has ended"});
  if (const auto before = claim->stream.lock()) before->stop();  // the reader has given it up
  Parcel& parcel = *claim->parcel;
  auto bytes = bytes_of(parcel, selection);
  if (!bytes) {
    fail_claim(claim, false);
    return answer(std::move(bytes).error());
  }
  auto stream = std::make_shared<ParcelStream>(*this, ticket_of(*claim, parcel).SerializeAsString(), parcel.id,
                                               claim->key.number, parcel.digest, std::move(*bytes));
  parcel.streams.insert(stream.get());
  claim->stream = stream;
  stream->begin();
  answer(std::shared_ptr<tcp::FetchSource>(std::move(stream)));
}

}  // namespace kvferry
