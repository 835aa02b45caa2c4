#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "test/simulator/memory_book.h"

namespace kvferry::simulator {

// Reads and writes between random engines, with cancels, deadlines, notifications, and regions that come and go; every
// range is reused (poisoned) the instant that the engine says that it may be. Holds I3, I4, I5, I6 and I8 against what
// the engine says.
class Transfers final : public Workload {
 public:
  struct Options {
    size_t slots = 24;         // of an area
    size_t slot_bytes = 1024;  // the most that one pair moves
    size_t most_pairs = 8;
  };
  Transfers(World& world, Options options);
  ~Transfers() override;

  void started(SimEngine& engine) override;
  void ending(SimEngine& engine) override;
  void after_turn(SimEngine& engine) override;
  void act() override;
  bool at_rest() override;
  void check_recovered() override;

  struct Tally {
    uint64_t ok = 0;
    uint64_t failed = 0;
    uint64_t unknown = 0;  // writes whose far side may still have changed
  };
  const Tally& tally() const { return tally_; }

 private:
  using AreaPtr = std::shared_ptr<Area>;
  struct Piece {
    size_t local_slot = 0;
    AreaPtr remote;
    size_t remote_slot = 0;
    size_t offset = 0;  // in the slot
    size_t length = 0;
    std::vector<std::byte> before;  // of a write's target
  };
  // One transfer, from submit until its memory has been given back.
  struct Live {
    uint64_t serial = 0;
    Operation operation = Operation::read;
    SimEngine* initiator = nullptr;
    SimEngine* owner = nullptr;
    uint64_t initiator_life = 0;
    uint64_t owner_life = 0;
    AreaPtr local;
    uint64_t local_epoch = 0;
    std::vector<Piece> pieces;
    std::vector<uint64_t> epochs;  // of the pieces' areas
    std::vector<uint64_t> tags;
    EngineCore::PeerIndex peer = 0;
    std::shared_ptr<TransferTask> task;
    TimePoint submitted;  // of the timeline
    bool notifies = false;
    int notified = 0;
    bool local_given_back = false;
    bool must_work = false;  // after all faults
  };
  using LivePtr = std::shared_ptr<Live>;
  struct Machine {
    std::vector<AreaPtr> areas;
    std::map<uint64_t, LivePtr> live;  // that this engine started, by serial
    size_t closing = 0;                // regions whose unregister has not ended
  };

  // ---- actions (transfers.cc)
  LivePtr submit(SimEngine& initiator, SimEngine& owner, Operation operation);
  bool draw_pieces(Live& live);
  Duration draw_timeout();
  std::shared_ptr<Job> make_job(Live& live);
  void cancel_one();
  void unregister_one();
  void register_again(SimEngine& engine, const AreaPtr& area, uint64_t life);
  void register_area(SimEngine& engine, Area& area);
  SimEngine* draw_engine();
  AreaPtr draw_area(SimEngine& engine, Area::Role role);

  // ---- checks (transfers_checks.cc)
  void check_live(SimEngine& engine, Live& live);
  void ended(const LivePtr& live);
  void check_read(const Live& live);
  void check_written(const Live& live);
  void give_back_local(Live& live);
  void settle_remote(const LivePtr& live, RemoteQuiet remote);
  void watch_remote(const LivePtr& live);
  void take_notifications(SimEngine& engine);
  bool remote_holds(const Live& live, size_t piece) const;
  std::string describe(const Live& live) const;
  void check_reach();
  void check_tables();

  World& world_;
  const Options options_;
  MemoryBook book_;
  std::vector<Machine> machines_;
  std::map<uint64_t, LivePtr> notifying_;
  static constexpr uint64_t kFromSerial = uint64_t{1} << 40;  // tags of writes; those of areas are smaller
  uint64_t next_serial_ = 1;
  uint64_t next_tag_ = 1;
  bool resting_ = false;
  Tally tally_;
};

}  // namespace kvferry::simulator
