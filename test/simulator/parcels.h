#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "test/simulator/cache.h"

namespace kvferry::simulator {

// Prefillers that publish parcels and decoders that read them: owners fill a block with the next request, or with
// poison, the instant they get it back. Holds I1, I2, I3, I4, I5 and I6 against what the engine says.
//
// An instance is one or two machines, the ranks of its tensor parallelism; owner instances come first.
class Parcels final : public Workload {
 public:
  struct Options {
    size_t owners = 2;   // instances
    size_t readers = 2;  // instances
    CacheShape owner_cache;
    CacheShape reader_cache;
    Duration least_lease = std::chrono::seconds(5);
    Duration longest_lease = std::chrono::seconds(20);
    size_t most_blocks = 5;     // of the owner's, in one parcel
    uint64_t digest_every = 4;  // parcels, one asks for a digest
    unsigned events = 0;        // per cent of parcels are published before their device has written them
    unsigned cut_short = 0;     // per cent of reads, whose parcel is released by force a moment after they began
    static size_t machines(const Options& options) {
      return options.owners * options.owner_cache.tp_size + options.readers * options.reader_cache.tp_size;
    }
  };
  Parcels(World& world, Options options);
  ~Parcels() override;

  void started(SimEngine& engine) override;
  void ending(SimEngine& engine) override;
  void after_turn(SimEngine& engine) override;
  void act() override;
  bool at_rest() override;
  void check_recovered() override;

  struct Tally {
    uint64_t published = 0;
    uint64_t accepted = 0;
    uint64_t refused = 0;  // reads that ended otherwise
  };
  const Tally& tally() const { return tally_; }

 private:
  // One rank's parcel, from the call of publish() until its blocks are back.
  struct Share {
    SimEngine* engine = nullptr;
    uint64_t life = 0;
    std::vector<uint32_t> blocks;
    bool published = false;
    bool filled = false;
    bool given_back = false;
    std::optional<size_t> group;  // the reader instance that accepted it
    TimePoint expires;            // by the owner's clock
  };
  // What one request leaves at a prefiller, under one transfer id.
  struct Request {
    uint64_t serial = 0;
    std::string id;
    size_t owner = 0;   // instance
    size_t reader = 0;  // that is meant to read it
    uint32_t tokens = 0;
    Duration lease{0};
    std::string fingerprint;
    std::vector<Share> shares;  // by owner rank
    size_t readings = 0;        // that were begun
    size_t ended = 0;           // of them, one way or another
    TimePoint last_end;         // of the timeline
    TimePoint last_deadline;    // of the readings, by the timeline
    bool must_work = false;
  };
  using RequestPtr = std::shared_ptr<Request>;
  // One rank's read.
  struct Reading {
    RequestPtr request;
    SimEngine* engine = nullptr;
    uint64_t life = 0;
    size_t instance = 0;
    std::vector<uint32_t> blocks;
    uint32_t first = 0;
    std::string fingerprint;
    TimePoint deadline;
    ParcelReader::ReadId id = 0;
    std::optional<ParcelOutcome> outcome;
    bool in_use = false;  // its event is not done, or has failed
    bool done = false;
  };
  using ReadingPtr = std::shared_ptr<Reading>;
  struct Machine {
    std::unique_ptr<Cache> cache;
    std::map<uint64_t, ReadingPtr> readings;  // under way, by serial
    std::map<std::string, RequestPtr> held;   // published here and not given back
  };

  // ---- actions (parcels.cc)
  void new_request();
  // Publishes after `wait`; the run is not at rest before.
  void later(Duration wait, const Task& publish);
  void publish(const RequestPtr& request);
  void publish_share(const RequestPtr& request, size_t rank);
  EventId fill_later(const RequestPtr& request, size_t rank);
  EventId free_later(const ReadingPtr& reading);
  void read_all(const RequestPtr& request, size_t instance, bool again);
  ReadingPtr read(const RequestPtr& request, size_t instance, size_t rank, bool more);
  void cancel_one();
  void release_one();
  void release_at_owner(const RequestPtr& request, bool force);
  RequestPtr draw_request();
  size_t owner_machine(size_t instance, size_t rank) const { return instance * options_.owner_cache.tp_size + rank; }
  size_t reader_machine(size_t instance, size_t rank) const {
    return options_.owners * options_.owner_cache.tp_size + instance * options_.reader_cache.tp_size + rank;
  }
  bool is_owner(const SimEngine& engine) const {
    return engine.host() < options_.owners * options_.owner_cache.tp_size;
  }
  std::string instance_id(const SimEngine& engine) const;

  // ---- checks (parcels_checks.cc)
  void take_released(SimEngine& engine);
  void take_back(SimEngine& engine, Request& request, Share& share, ReleaseReason why);
  bool may_hold(const SimEngine& engine, const Request& request, const Share& share) const;
  void check_held(SimEngine& engine);
  void ended(SimEngine& engine, Reading& reading);
  void check_accepted(const Reading& reading);
  void check_reach();
  void check_tables();

  World& world_;
  const Options options_;
  MemoryBook book_;
  std::vector<Machine> machines_;
  std::vector<RequestPtr> requests_;  // the latest
  uint64_t next_serial_ = 1;
  bool resting_ = false;
  size_t computing_ = 0;  // publishes that are planned
  Tally tally_;
};

}  // namespace kvferry::simulator
