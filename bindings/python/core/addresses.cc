#include "bindings/python/core/addresses.h"

#include <algorithm>
#include <iterator>

namespace kvferry::python {
namespace {

// A peer that says nothing, such as a host that is gone, is one that cannot be reached: no transfer has begun.
Status connect(const PeerRef& peer, Duration patience) {
  Status connected = peer.connect(patience);
  if (connected.ok() || connected.error().code != ErrorCode::deadline_exceeded) return connected;
  Error silent = std::move(connected).error();
  silent.code = ErrorCode::unavailable;
  return silent;
}

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
  KVF_RETURN_IF_ERROR(connect(transfer.peer, connect_timeout));
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

// Runs of one kind go in one call each, which is one announcement to the peers. Regions that are here when a later one
// is refused are unregistered as they go.
Result<std::vector<Region>> register_addresses(Engine& engine, const std::vector<uint64_t>& addresses,
                                               const std::vector<uint64_t>& lengths, uint32_t permissions) {
  if (addresses.size() != lengths.size())
    return Error{ErrorCode::invalid_argument, "addresses and lengths are not equally many"};
  std::vector<Region> regions;
  regions.reserve(addresses.size());
  const auto base = [&](size_t i) { return reinterpret_cast<void*>(addresses[i]); };
  for (size_t i = 0; i < addresses.size();) {
    const MemoryKind kind = engine.kind_of(base(i));
    std::vector<std::pair<void*, uint64_t>> run;
    for (; i < addresses.size() && engine.kind_of(base(i)) == kind; ++i) run.emplace_back(base(i), lengths[i]);
    KVF_ASSIGN_OR_RETURN(std::vector<Region> added, engine.register_memory(run, kind, permissions));
    std::move(added.begin(), added.end(), std::back_inserter(regions));
  }
  return regions;
}

}  // namespace kvferry::python
