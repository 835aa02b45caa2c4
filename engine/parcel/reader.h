#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/memory/registry.h"
#include "engine/memory/staging.h"
#include "engine/parcel/layout.h"
#include "engine/parcel/pieced_read.h"
#include "engine/parcel/reshard.h"
#include "engine/parcel/sink.h"
#include "engine/parcel/states.h"
#include "engine/run/core.h"
#include "proto/control.pb.h"

namespace kvferry {

// One rank's share of one parcel: where it is, who reads, and where it goes.
struct ParcelRead {
  std::string transfer_id;
  std::string expected_instance_id;           // of the owner; empty: whoever is there
  std::vector<EngineCore::PeerIndex> owners;  // of all owner ranks that this rank settles with, in any order
  std::string group_instance_id;              // of the reader's instance; its sizes and this rank are in `layout`
  std::string fingerprint;
  std::shared_ptr<const KvLayout> layout;  // of this rank's cache, whose regions are registered
  std::vector<BlockList> blocks;           // by KV group of `layout`
  uint32_t first_token = 0;                // what lies before is here already
  uint32_t end_token = 0;                  // 0: all that the parcel covers
  bool more = false;                       // this instance will claim the parcel again
  EventId event = 0;                       // what still uses the blocks; 0: nothing
  TimePoint deadline = kNever;
};

// I1: the blocks hold the parcel if and only if `state` is accepted; otherwise they must not be used. I4: they are
// quiet.
struct ParcelOutcome {
  ReadState state = ReadState::failed;
  Status status;
  uint64_t bytes = 0;
  uint64_t tokens = 0;
  std::string fabric;
};

// The reader's side of parcels: claims from every owner rank, plans, reads, settles, and gives one outcome by the
// deadline whatever the owners do (I3). A broken session is taken up again: claims and settles are repeated under their
// numbers. On loop only.
class ParcelReader {
 public:
  using Done = std::function<void(const ParcelOutcome&)>;
  using ReadId = uint64_t;

  // Both outlive the reader.
  ParcelReader(EngineCore& core, Loop& loop, Registry& registry) : core_(core), loop_(loop), registry_(registry) {}
  ~ParcelReader();

  ReadId read(ParcelRead request, Done done);
  // I4: when this returns, the blocks are quiet; the outcome `cancelled` has been given.
  void cancel(ReadId id);
  // Cancels every read whose cache lies in the region (unregister).
  void end_users_of(const RegionState& region);
  // Tells one owner that nobody of this group will read the parcel. Idempotent; by the sessions that follow, too, until
  // the owner has answered or `deadline` has come.
  void release(EngineCore::PeerIndex owner, const std::string& transfer_id, bool force, TimePoint deadline);

 private:
  struct Read;
  using ReadPtr = std::shared_ptr<Read>;
  static constexpr size_t kNobody = SIZE_MAX;
  // What an owner's tickets have told of its cache, as long as its incarnation lasts.
  struct KnownOwner {
    uint64_t incarnation = 0;
    uint64_t layout_hash = 0;
    std::shared_ptr<const KvLayout> layout;
    std::shared_ptr<const RegionTable> regions;
  };
  // One claim: this read's part at one owner rank.
  struct Share {
    EngineCore::PeerIndex peer = 0;
    uint64_t number = 0;
    ReadState state = ReadState::waiting;
    uint64_t incarnation = 0;  // that the claim was made to
    std::string owner_id;      // of its engine, once there was a session
    std::string last_error;    // of a session that broke
    KnownOwner owner;
    bool ticket = false;  // the rest is known from it:
    uint64_t generation = 0;
    WordIndex word = kNoWord;
    uint64_t tokens = 0;
    bool digest = false;
    uint64_t read_digest = 0;  // of what was read, for the owner to compare
    std::vector<BlockList> blocks;
    Duration lease{0};         // that was left when the ticket came
    std::shared_ptr<Job> job;  // while reading by a one-sided fabric
    OneSidedPath* job_path = nullptr;
    std::shared_ptr<PiecedRead> pieces;  // the job, where it does not go in one
    tcp::FetchPath::FetchId fetch = 0;   // while reading a stream
    std::shared_ptr<ParcelSink> sink;
    OwnerShare plan;
    uint64_t bytes = 0;  // of it
    int attempts = 0;
    bool starting = false;  // waits for a session, to ask the owner
  };
  // A release that the owner has not answered.
  struct Release {
    EngineCore::PeerIndex owner = 0;
    std::string transfer_id;
    bool force = false;
    TimePoint deadline;
    bool starting = false;  // waits for a session
  };
  struct Read {
    ReadId id = 0;
    ParcelRead request;
    Done done;
    TimePoint began;
    std::vector<Share> shares;
    Staging::Watch in_use;  // what still uses the blocks
    bool begun = false;     // nothing does
    bool planned = false;
    bool over = false;
    uint64_t bytes = 0;
    std::string fabric;
    std::vector<RegionPin> pins;  // of this rank's cache
    MemoryOps* ops = nullptr;     // of all of them
    std::unique_ptr<Timer> timer;
    std::unique_ptr<Timer> extension;
  };

  void listen_to(EngineCore::PeerIndex peer);
  void on_answer(EngineCore::PeerIndex peer, const proto::Frame& frame);
  void on_session_ended(EngineCore::PeerIndex peer, const Error& why);

  void begin_when_free(const ReadPtr& read);
  void begin(const ReadPtr& read);
  void start_share(const ReadPtr& read, size_t index);
  void send_claim(const ReadPtr& read, Share& share);
  proto::Claim claim_of(const Read& read, const Share& share) const;
  bool try_one_stream(const ReadPtr& read);
  void on_ticket(const ReadPtr& read, size_t index, const proto::Ticket& ticket);
  Status take_ticket(Share& share, const proto::Ticket& ticket);
  void plan_when_complete(const ReadPtr& read);
  void extend_in_time(const ReadPtr& read);
  void read_share(const ReadPtr& read, size_t index);
  bool reaches(const Read& read, const Share& share) const;
  bool reaches_directly(const Read& read, const Share& share) const;
  Result<std::shared_ptr<Job>> job_of(const Read& read, const Share& share) const;
  void read_one_sided(const ReadPtr& read, size_t index, OneSidedPath& path);
  void ask_check(const Share& share);
  void read_stream(const ReadPtr& read, size_t index, Result<CacheWalk> target);
  void on_stream_end(const ReadPtr& read, size_t index, Result<std::string> trailer);
  void on_share_read(const ReadPtr& read, size_t index, Status status, std::optional<uint64_t> digest);
  void on_verdict(const ReadPtr& read, size_t index, const proto::Verdict& verdict);
  void settle(const ReadPtr& read, Share& share, bool one_way);
  void accept_share(const ReadPtr& read, size_t index);
  void retry_share(const ReadPtr& read, size_t index, const Error& why);
  void send_release(uint64_t number);
  void send_release_later(uint64_t number, Release& release);
  void send_releases_again(EngineCore::PeerIndex owner);

  Result<std::vector<Pair>> local_pairs(const Read& read, const CachePairs& pairs) const;
  static Result<CacheWalk> target_of(const Read& read, const Selection& selection);
  static uint64_t digest_of_share(const Read& read, const Share& share);
  Status pin_cache(Read& read);
  static void let_go_of_job(Share& share);
  bool stop_share(Share& share);
  // `at_fault`: the share that ended it; else the first that is unfinished is named.
  void give_up(const ReadPtr& read, ReadState state, const Error& why, size_t at_fault = kNobody);
  std::string stage_of(const Share& share) const;
  Error explain(const Read& read, const Error& why, size_t at_fault) const;
  void finish(const ReadPtr& read, ParcelOutcome outcome);

  EngineCore& core_;
  Loop& loop_;
  Registry& registry_;
  std::unordered_map<ReadId, ReadPtr> reads_;
  std::map<uint64_t, std::pair<std::weak_ptr<Read>, size_t>> by_number_;  // claims under way
  std::map<uint64_t, Release> releases_;                                  // by number
  std::unordered_map<EngineCore::PeerIndex, KnownOwner> known_;
  std::unordered_map<EngineCore::PeerIndex, bool> listening_;
  ReadId next_read_ = 1;
  uint64_t next_number_ = 1;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvferry
