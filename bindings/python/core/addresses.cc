#include "bindings/python/core/addresses.h"

namespace kvferry::python {
namespace {

Result<TransferRequest> to_request(const AddressTransfer& transfer, Duration connect_timeout) {
  const size_t count = transfer.local.size();
  if (transfer.remote.size() != count || transfer.lengths.size() != count)
    return Error{ErrorCode::invalid_argument, "buffers, peer buffers and lengths are not equally many"};
  TransferRequest request;
  request.peer = transfer.peer;
  request.operation = transfer.operation;
  request.timeout = transfer.timeout;
  request.notify = transfer.notification;
  request.pairs.resize(count);
  for (size_t i = 0; i < count; ++i) {
    request.pairs[i].local = reinterpret_cast<std::byte*>(transfer.local[i]);
    request.pairs[i].length = transfer.lengths[i];
  }
  KVF_RETURN_IF_ERROR(transfer.peer.connect(connect_timeout));
  auto incarnation = transfer.peer.locate(transfer.remote, request.pairs);
  if (!incarnation) {  // registered a moment ago, perhaps
    KVF_RETURN_IF_ERROR(transfer.peer.sync(connect_timeout));
    incarnation = transfer.peer.locate(transfer.remote, request.pairs);
  }
  if (!incarnation) return std::move(incarnation).error();
  request.incarnation = *incarnation;
  return request;
}

// What was asked of a session that is no more may be asked again: nothing has moved.
bool is_worth_another_try(const Outcome& outcome) {
  return !outcome.status.ok() && outcome.status.error().code == ErrorCode::peer_lost && outcome.bytes_done == 0 &&
         outcome.remote == RemoteQuiet::quiet;
}

}  // namespace

Outcome transfer_addresses(Engine& engine, const AddressTransfer& transfer, Duration connect_timeout) {
  Outcome outcome;
  for (int attempt = 0; attempt < 2; ++attempt) {
    auto request = to_request(transfer, connect_timeout);
    if (!request) {
      outcome = Outcome();
      outcome.status = std::move(request).error();
      return outcome;
    }
    outcome = engine.transfer(std::move(*request));
    if (!is_worth_another_try(outcome)) break;
  }
  return outcome;
}

Result<Transfer> submit_addresses(Engine& engine, const AddressTransfer& transfer, Duration connect_timeout) {
  KVF_ASSIGN_OR_RETURN(TransferRequest request, to_request(transfer, connect_timeout));
  return engine.submit(std::move(request));
}

}  // namespace kvferry::python
