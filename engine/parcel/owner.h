#pragma once

#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/metrics.h"
#include "common/random.h"
#include "engine/fabric/tcp/owner.h"
#include "engine/io/fair_turns.h"
#include "engine/memory/registry.h"
#include "engine/memory/staging.h"
#include "engine/parcel/digest_run.h"
#include "engine/parcel/layout.h"
#include "engine/parcel/parcel_types.h"
#include "engine/parcel/span_table.h"
#include "engine/parcel/states.h"
#include "engine/session/owner_session.h"
#include "proto/control.pb.h"

namespace kvferry {

class ParcelStream;

// The owner's side of parcels: who may read what, until when, and the moment at which the memory is free again. All
// decisions are made here, on the loop, by state tables; time comes from the loop. Sessions bring readers' frames
// (ParcelDesk), lanes bring fetches (FetchDesk).
//
// I1: a verdict is `valid` only while the generation that the claim was granted is in force.
// I2: `released` is told once a parcel, after its generation has moved and its streams were stopped.
class ParcelOwner final : public ParcelDesk, public tcp::FetchDesk {
 public:
  // Everything outlives the owner.
  struct Parts {
    Loop& loop;
    GateWords& words;
    Registry& registry;
    tcp::Owner& lanes;
    Random& random;
    MetricsRegistry& metrics;
    ParcelEvents& events;
  };

  ParcelOwner(Parts parts, ParcelLimits limits);
  ~ParcelOwner() override;

  // How this rank's cache lies; its regions are registered, and of one memory kind. Before anything is announced, once.
  Status set_cache(std::string instance_id, KvLayout layout);

  // The request is known: claims for it wait, for as long as the lease.
  Status announce(const std::string& transfer_id, Duration lease);
  // It will not come after all: claims that wait are told `gone`.
  void withdraw(const std::string& transfer_id);
  // From here to `released` the blocks belong to the parcel. An Error: they never did.
  Status publish(ParcelSpec spec);

  // Idempotent, also for ids that never were; not forced, it takes effect after the last live claim.
  ReleaseAnswer release(const std::string& transfer_id, bool force);
  std::optional<ParcelStatus> status(const std::string& transfer_id) const;

  // Ends every parcel, where the cache lies in that region (unregister).
  void end_users_of(const RegionState& region);
  // Ends every parcel.
  void shut_down();

  void on_parcel_frame(OwnerSession& reader, const proto::Frame& frame) override;
  void on_reader_came(OwnerSession& reader) override;
  void on_reader_left(OwnerSession& reader) override;
  void on_fetch(Guest& guest, ByteSpan request, Answer answer) override;

 private:
  friend class ParcelStream;
  struct Parcel;
  struct Claim;
  using ClaimPtr = std::shared_ptr<Claim>;
  // What a claim is answered with: a granted claim, or why not.
  using Granted = std::function<void(Result<ClaimPtr>)>;

  struct ReaderKey {
    std::string engine_id;
    uint64_t incarnation = 0;
    auto operator<=>(const ReaderKey&) const = default;
  };
  struct ClaimKey {
    ReaderKey reader;
    uint64_t number = 0;
    auto operator<=>(const ClaimKey&) const = default;
  };
  struct Reader {
    // Those that stand, the one that spoke last at the end; none: within the grace. An old connection's hello may be
    // handled after a new one's, and its end then says nothing about the reader.
    std::vector<OwnerSession*> sessions;
    TimePoint alone_since;         // where there is none
    std::unique_ptr<Timer> grace;  // while it, or a claim of it, is lost
    size_t waiting = 0;
  };
  // The owner's own digest of what a claim reads.
  struct Check {
    std::string selection;
    bool begun = false;                      // it waits for its turn before
    std::shared_ptr<DigestRun> run;          // while it is computed
    std::optional<Result<uint64_t>> digest;  // then
    std::optional<proto::Settle> asked;      // the verdict waits for it
  };
  // One claim from its arrival to its end.
  struct Claim {
    ClaimKey key;
    std::string transfer_id;
    proto::Claim asked;     // what is needed of it later
    bool by_fetch = false;  // it came with one, and not for a ticket
    size_t fetches = 0;
    std::weak_ptr<ParcelStream> stream;  // of the last of them
    ClaimState state = ClaimState::waiting;
    Parcel* parcel = nullptr;  // while granted
    Granted granted;           // while waiting
    std::unique_ptr<Timer> timer;
    std::vector<const Guest*> heard_over;  // sessions that stand, over which it was asked for
    TimePoint lost_since = kNever;         // none of them stands any more
    std::unique_ptr<Check> check;          // of a one-sided read with a digest
    bool check_queued = false;             // the check that there is then gets a turn
  };
  enum class RankState : uint8_t { expected, settled, failed };
  struct Parcel {
    std::string id;
    uint64_t serial = 0;
    ParcelState state = ParcelState::none;
    std::vector<BlockList> blocks;
    uint64_t tokens = 0;
    std::string fingerprint;
    uint64_t generation = 0;
    WordIndex word = kNoWord;
    TimePoint born;
    Duration lease{0};
    TimePoint expires;
    bool digest = false;
    bool filled = true;  // the event that was published with it is done: claims are answered
    Staging::Watch filling;
    bool release_wanted = false;
    // The reader group, once known.
    std::string group;
    uint32_t group_tp = 0, group_pp = 0;
    std::map<uint32_t, RankState> ranks;  // those that must settle, by pp * tp_size + tp
    std::vector<ClaimPtr> live;           // granted claims
    std::set<ParcelStream*> streams;
  };

  void hear_of(Claim& claim, const Guest& session);
  void watch_reader(const ReaderKey& key, Reader& reader);
  void end_grace(const ReaderKey& key);

  void on_claim(const Guest& session, const proto::Claim& asked, Granted granted);
  void wait_for_publish(ClaimPtr claim, bool announced);
  void on_late(const ClaimPtr& claim, TimePoint until);
  void stop_waiting(const ReaderKey& key);
  void end_all();
  Status admit(Parcel& parcel, Claim& claim);
  Status join_group(Parcel& parcel, const Claim& claim);
  void grant(Parcel& parcel, const ClaimPtr& claim);
  void refuse_waiting(const std::string& transfer_id, const Error& why);
  std::vector<ClaimPtr> take_waiting(const std::string& transfer_id);

  void on_settle(OwnerSession& reader, const proto::Settle& settle);
  void settle(const ClaimPtr& claim, const proto::Settle& settle, Status verdict);
  static std::unique_ptr<Check> take_check(Claim& claim);
  void on_check(const ReaderKey& reader, const proto::Check& check);
  void open_stream(const ClaimPtr& claim, const std::string& selection, const Answer& answer);
  void start_check(const ClaimPtr& claim, const std::string& selection);
  void begin_check(const ClaimPtr& claim);
  void check_digest(const ClaimPtr& claim, const proto::Settle& settle);
  void judge_digest(const ClaimPtr& claim);
  void send_verdict(const ClaimKey& key);
  void stop_checking(const ClaimPtr& claim);
  void fail_claim(const ClaimPtr& claim, bool replaced);
  void leave_parcel(const ClaimPtr& claim);
  void review(Parcel& parcel);
  void keep_verdict(const ClaimKey& key, const Status& verdict);

  void grant_waiting(Parcel& parcel);
  void on_filled(const std::string& transfer_id, uint64_t generation, const Status& status);
  void end(Parcel& parcel, ParcelEvent event, ReleaseReason why);
  void bury(const std::string& transfer_id, Duration lease);
  bool buried(const std::string& transfer_id);
  void set_expiry(Parcel& parcel, TimePoint expires);
  void schedule_expiry();
  void expire_due();

  // What a selection takes of a parcel.
  struct Bytes {
    MemoryOps* ops = nullptr;  // null: nothing is selected
    CacheWalk walk;
    std::vector<RegionPin> pins;
  };
  Result<Bytes> bytes_of(const Parcel& parcel, const std::string& selection) const;

  proto::Ticket ticket_of(const Claim& claim, const Parcel& parcel) const;
  void send_ticket(const ReaderKey& reader, uint64_t number, const Result<ClaimPtr>& granted);
  void update_gauges();
  Error full(const char* limit, size_t value) const;
  Counter& refusals(const char* limit) const;
  void refused(const char* limit) const;

  Parts parts_;
  const ParcelLimits limits_;
  std::string instance_id_;
  KvLayout layout_;
  std::string layout_bytes_;
  uint64_t layout_hash_ = 0;
  std::vector<RegionInfo> cache_regions_;
  MemoryOps* cache_ops_ = nullptr;

  std::unordered_map<std::string, std::unique_ptr<Parcel>> parcels_;
  std::map<std::pair<TimePoint, uint64_t>, Parcel*> expiry_;  // by time and serial
  uint64_t next_serial_ = 1;
  Timer expiry_timer_;
  TimePoint expiry_due_;
  std::unordered_map<std::string, std::vector<ClaimPtr>> waiting_;  // by transfer id
  std::map<ReaderKey, Reader> readers_;
  std::map<ClaimKey, ClaimPtr> claims_;  // waiting and granted
  size_t waiting_claims_ = 0;
  FairTurns<ReaderKey> tables_;  // of spans, which a reader's few bytes make as long as a parcel is

  struct Verdict {
    ErrorCode code;  // of a claim that was not accepted
    bool valid;
    std::string message;
  };
  std::map<ClaimKey, Verdict> verdicts_;
  std::deque<std::pair<TimePoint, ClaimKey>> verdict_order_;
  std::unordered_map<std::string, TimePoint> tombstones_;
  std::deque<std::pair<TimePoint, std::string>> tombstone_order_;

  Gauge& parcels_gauge_;
  Gauge& claims_gauge_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvferry
