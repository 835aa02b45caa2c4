#pragma once

#include <functional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/result.h"
#include "sim/model_config.h"

namespace kvferry::sim {

// Where a decoder finds the KV of its prompt; comes from the proxy, so from the network.
struct TransferRef {
  std::string transfer_id;
  std::string remote_bootstrap_addr;
  std::string remote_engine_id;
};

struct KvPublication {
  std::string transfer_id;
  std::vector<Token> prompt;    // all of it, for the fingerprint
  size_t tokens_covered = 0;    // of the prompt, from its beginning
  std::vector<BlockId> blocks;  // the same ids on every rank
  std::string cache_salt;
};

struct KvFetch {
  TransferRef from;
  std::vector<Token> prompt;
  size_t first_token = 0;  // the first that is not here yet; a multiple of the block size
  size_t end_token = 0;    // tokens [first_token, end_token) go into `blocks`, one block after the other
  std::vector<BlockId> blocks;
  std::string cache_salt;
  TimePoint deadline = kNever;
};

// How KV leaves and enters this server, for all ranks of its model at once. The engine's parcels stand behind it, or a
// fake in tests. All methods are called by the serving thread and do not block. Callbacks may come from any thread,
// also from within the call, and each comes exactly once.
class KvTransfer {
 public:
  virtual ~KvTransfer() = default;

  // Owner. A request under this id was accepted: readers that come early wait for publish() or withdraw().
  virtual void announce(const std::string& transfer_id) = 0;
  // The KV is there and stays untouched until `released` is called. On an Error `released` is never called.
  virtual Status publish(KvPublication publication, std::function<void()> released) = 0;
  // An announced id that will not be published: its readers are told at once.
  virtual void withdraw(const std::string& transfer_id) = 0;

  // Reader. `done` is called when no byte can land in the blocks any more, with ok only if they hold exactly what the
  // owner published; always within the deadline plus what it takes to become quiet. `fetch_id` is the caller's.
  virtual void fetch(uint64_t fetch_id, KvFetch fetch, std::function<void(Status)> done) = 0;
  // Makes `done` come soon. A fetch that is done or unknown is no error.
  virtual void cancel(uint64_t fetch_id) = 0;
  // This reader will not fetch (any more): the owner may take its blocks back. Idempotent; any time, also for ids that
  // the owner does not know.
  virtual void release(const TransferRef& from) = 0;
};

}  // namespace kvferry::sim
