#include "engine/parcel/sink.h"

namespace kvferry {

void ParcelSink::stop() {
  stopped_ = true;
  if (copying_ > 0) parts_.staging.drain();
  buffer_.release();
}

void ParcelSink::on_head(ByteSpan head) {
  if (!stopped_) parts_.head(head);
}

Result<std::vector<iovec>> ParcelSink::place(uint64_t bytes) {
  if (bytes > parts_.target.left())
    return Error{ErrorCode::protocol, "malformed lane frame: a stream longer than what was asked for"};
  KVF_ASSIGN_OR_RETURN(placed_, parts_.target.take(bytes));
  if (parts_.ops.host_addressable()) return placed_;
  KVF_ASSIGN_OR_RETURN(buffer_, parts_.staging.take_now(parts_.ops, bytes));
  return std::vector<iovec>{{buffer_.data(), buffer_.size()}};
}

bool ParcelSink::on_filled() {
  if (!buffer_) {
    if (digest_) digest_->add(placed_);
    return true;
  }
  auto buffer = std::make_shared<Staging::Buffer>(std::move(buffer_));
  if (digest_) {
    const iovec piece{buffer->data(), buffer->size()};
    digest_->add({&piece, 1});
  }
  std::vector<CopySpan> copies;
  copies.reserve(placed_.size());
  std::byte* from = buffer->data();
  for (const iovec& part : placed_) {
    copies.push_back({static_cast<std::byte*>(part.iov_base), from, part.iov_len});
    from += part.iov_len;
  }
  ++copying_;
  parts_.staging.copy(parts_.ops, CopyDirection::to_device, copies,
                      [weak = weak_from_this(), buffer](const Status& status) {
                        buffer->release();
                        if (const auto self = weak.lock(); self != nullptr && !self->stopped_) self->on_landed(status);
                      });
  holding_ = copying_ >= kCopies;
  return !holding_;
}

void ParcelSink::on_landed(const Status& status) {
  --copying_;
  if (!status.ok() && failure_.ok()) failure_ = status;
  if (trailer_) {
    if (copying_ == 0) end();
  } else if (std::exchange(holding_, false)) {
    parts_.go_on();
  }
}

void ParcelSink::on_end(Result<std::string> trailer) {
  if (stopped_) return;
  trailer_ = std::move(trailer);
  if (copying_ == 0) end();
}

void ParcelSink::end() {
  Result<std::string> trailer = std::move(*trailer_);
  if (trailer.ok() && !failure_.ok()) trailer = failure_.error();
  parts_.ended(std::move(trailer));
}

}  // namespace kvferry
