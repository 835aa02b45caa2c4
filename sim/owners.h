#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>

#include "bootstrap/client.h"
#include "engine/parcel/ranks.h"
#include "sim/kv_transfer.h"

namespace kvferry::sim {

// All ranks of one prefiller instance and where their engines are.
struct Owners {
  uint32_t tp_size = 1;
  uint32_t pp_size = 1;
  std::map<RankId, std::string> addresses;
};

// Finds prefillers through their bootstrap servers. What was found is kept: an instance never moves, and one that was
// restarted has another id. Everything happens on the loop.
class OwnerFinder {
 public:
  OwnerFinder(boost::asio::io_context& loop, http::Deadlines& deadlines, Random& random);

  // Asks again while the bootstrap server is away or does not know all ranks yet, until `deadline`.
  boost::asio::awaitable<Result<std::shared_ptr<const Owners>>> find(TransferRef from, TimePoint deadline);

 private:
  boost::asio::awaitable<Result<std::shared_ptr<const Owners>>> ask(const http::Url& base, const std::string& instance);
  void keep(const std::string& instance, std::shared_ptr<const Owners> owners);

  static constexpr size_t kKept = 1024;  // instances (I6)

  boost::asio::io_context& loop_;
  http::Deadlines& deadlines_;
  bootstrap::Client client_;
  std::map<std::string, std::shared_ptr<const Owners>> known_;  // by instance id
  std::deque<std::string> order_;                               // of known_, oldest first
};

}  // namespace kvferry::sim
