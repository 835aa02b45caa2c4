#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/log.h"
#include "engine/fabric/plugin/path.h"
#include "engine/plan/coalesce.h"
#include "engine/plan/rails.h"

namespace kvferry::plugin {

struct RailOptions {
  uint64_t share_bytes = uint64_t{2} << 20;  // of a job, given to one rail at a time
  size_t share_pairs = 1024;
  uint64_t depth = uint64_t{8} << 20;           // bytes that a rail is given before others end
  Duration patience = std::chrono::seconds(3);  // with a rail that moves nothing while others do
};

// Several devices to one peer, the rails: a PluginPath each. A job is cut into shares that go to the nearest rails, as
// these come through with what they have (plan/rails.h). A rail whose connection breaks or that stands still is taken
// out: its shares go to others, but for those of writes that may still arrive by it; it is dialled again by itself, and
// is used again once that has succeeded. On loop only.
class RailsPath final : public RevocablePath {
 public:
  struct Way {
    std::unique_ptr<PluginPath> path;
    const Node* node = nullptr;
  };
  // REQUIRES: at least one way, all of one fabric; options of theirs say that another stands in.
  RailsPath(Loop& loop, std::vector<Way> ways, std::string owner, bool has_stand_in, std::shared_ptr<Logger> logger,
            RailOptions options);
  ~RailsPath() override;

  const char* fabric() const override { return rails_.front().node->name(); }
  void start(std::shared_ptr<Job> job) override;
  bool cancel(const std::shared_ptr<Job>& job, Task far_quiet) override;
  std::optional<bool> in_force(WordIndex, uint64_t) const override { return std::nullopt; }
  bool reaches(const RegionInfo& region) const override;
  bool reaches_directly(MemoryOps& local, std::span<const RegionPin> pins, const RegionInfo& region) const override;
  std::string describe() const override;
  void retire(const std::shared_ptr<const RegionTable>& table, Task quiet) override;
  bool close() override;

 private:
  struct RailState {
    std::unique_ptr<PluginPath> path;
    const Node* node = nullptr;
    uint64_t waiting = 0;  // cost of the shares that it has
    uint64_t moved = 0;    // bytes
    bool out = false;      // as it was last said
    uint64_t mark = 0;     // what it had moved when it was last seen to move, with shares in part
    TimePoint since{};     // and when that was
  };
  struct Share {
    std::shared_ptr<Job> part;
    size_t rail = 0;
    Chunk chunk;
    size_t moves = 0;  // from rail to rail
  };
  // Far sides that have not confirmed yet that they are quiet.
  struct Unsure {
    size_t count = 0;
    Task told;
  };
  struct Haul;
  using HaulPtr = std::shared_ptr<Haul>;

  void queue(const HaulPtr& haul);
  void pump();
  bool give(const HaulPtr& haul);
  std::shared_ptr<Job> part_of(const Job& job, const Chunk& chunk) const;
  std::vector<Rail> view_for(const Haul& haul) const;
  void put_on(const HaulPtr& haul, Share share);
  void on_share(const HaulPtr& haul, const Job* part, Status status);
  bool take_off(const HaulPtr& haul, const Share& share);
  void fail(const HaulPtr& haul, const Error& error);
  void settle(const HaulPtr& haul);
  void finish(const HaulPtr& haul, Status status);
  void tend_later();
  void tend();
  void evacuate(size_t rail);
  void look_for_standstill();
  bool any_usable() const;
  std::vector<HaulPtr> all_hauls() const;

  Loop& loop_;
  const std::string owner_;
  const bool has_stand_in_;
  const std::shared_ptr<Logger> logger_;
  const RailOptions options_;
  const std::vector<std::vector<int>> numa_distances_;
  std::vector<RailState> rails_;
  std::unordered_map<const Job*, HaulPtr> hauls_;
  std::deque<HaulPtr> queue_;  // those with shares to give, in turn
  Timer watch_;                // while a rail has work, or is out
  TimePoint last_look_{};
  bool tending_planned_ = false;
  bool pumping_ = false;
  bool closed_ = false;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvferry::plugin
