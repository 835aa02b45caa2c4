#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/fabric/ofi/name.h"

namespace kvferry::ofi {

// Wakes the peer where the provider's queues wake nobody, nor tell of a peer that is gone (shared memory): who has put
// something there for a connection rings with its number, and whoever is rung at looks there and rings back with it if
// the connection is none any more, else with 0. A socket of this host, by a name that follows from an endpoint's. Who
// rings without a reason costs a look.
class Bell {
 public:
  // One that is found by the endpoint's name, at the owner; without a name the initiator's. Null: see errno.
  static std::unique_ptr<Bell> hang(const Name& endpoint);
  ~Bell();
  Bell(const Bell&) = delete;
  Bell& operator=(const Bell&) = delete;

  int descriptor() const { return socket_; }

  // Whether somebody has rung since.
  bool heard();
  // Initiator. False: nobody is there any more.
  bool ring(const Name& owner, uint64_t number) const;
  // Initiator: connections that are none any more, by what was heard last.
  const std::set<uint64_t>& gone() const { return gone_; }
  // Owner: to be called when what they rang for has been looked at.
  void ring_back(const std::function<bool(uint64_t number)>& stands);

 private:
  Bell() = default;

  int socket_ = -1;
  bool at_door_ = false;
  std::vector<std::pair<std::string, uint64_t>> callers_;  // address, connection; bounded by what one heard() takes
  std::set<uint64_t> gone_;
};

}  // namespace kvferry::ofi
