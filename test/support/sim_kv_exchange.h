#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "sim/kv_transfer.h"
#include "sim/model.h"

namespace kvferry::sim {

// Parcels without an engine: a place where the servers of one test leave KV for each other. Nothing moves before
// deliver(), which copies byte by byte between ranks of any two tensor parallel sizes. One thread.
class KvExchange {
 public:
  // The hand-over of one server. `model` and the exchange outlive it.
  std::unique_ptr<KvTransfer> connect(Model& model);

  // Serves what can be served now: fetches of published ids, of ids that are gone, and cancelled ones.
  void deliver();

  // Faults: what the coming fetches meet.
  void fail_fetches(bool fail) { fail_fetches_ = fail; }
  void damage_block(std::optional<size_t> index) { damage_block_ = index; }

  // Ends the lease of everything published.
  void expire_all();

  size_t published() const { return published_.size(); }
  size_t fetches() const { return fetches_.size(); }
  size_t tokens_moved() const { return tokens_moved_; }

 private:
  class Endpoint;
  struct Published {
    Model* owner;
    KvPublication publication;
    std::function<void()> released;
  };
  struct Fetch {
    Model* reader;
    uint64_t id;
    KvFetch fetch;
    std::function<void(Status)> done;
    bool cancelled = false;
  };
  Status serve(const Fetch& fetch);
  void release(const std::string& transfer_id);

  std::map<std::string, bool> announced_;  // true while it may still be published
  std::map<std::string, Published> published_;
  std::deque<Fetch> fetches_;
  bool fail_fetches_ = false;
  std::optional<size_t> damage_block_;
  size_t tokens_moved_ = 0;
};

}  // namespace kvferry::sim
