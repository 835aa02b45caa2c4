#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/engine.h"

namespace kvferry::python {

// A transfer whose far side is given by addresses of the peer's address space instead of spans.
struct AddressTransfer {
  PeerRef peer;
  Operation operation = Operation::read;
  std::vector<uint64_t> local;
  std::vector<uint64_t> remote;
  std::vector<uint64_t> lengths;
  Duration timeout{0};  // 0: the engine's default
  std::optional<Notification> notification;
};

// Connects, if there is no session, turns the addresses into spans of the regions that the peer has now, and moves
// them. A session that was lost, or a peer that has restarted, since the addresses were looked up is tried once more:
// its new regions decide whether they are still good. Error unavailable: there was no connection within
// `connect_timeout`. Without Python: may block.
Outcome transfer_addresses(Engine& engine, const AddressTransfer& transfer, Duration connect_timeout);
Result<Transfer> submit_addresses(Engine& engine, const AddressTransfer& transfer, Duration connect_timeout);

// Registers `lengths[i]` bytes at each of `addresses`, of whatever memory kind lies there: all or none. Without Python.
Result<std::vector<Region>> register_addresses(Engine& engine, const std::vector<uint64_t>& addresses,
                                               const std::vector<uint64_t>& lengths, uint32_t permissions);

}  // namespace kvferry::python
