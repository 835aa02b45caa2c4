#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "common/log.h"
#include "engine/fabric/fabric.h"
#include "engine/fabric/plugin/keys.h"
#include "engine/fabric/plugin/node.h"
#include "engine/fabric/plugin/work.h"

namespace kvferry::plugin {

struct PathOptions {
  // In flight on the connection (I6). What is begun must end soon when a transfer is cancelled: 16 MiB are 2 ms of a
  // link of 8 GB/s.
  uint64_t window_bytes = uint64_t{16} << 20;
  size_t window_operations = 1024;
  uint64_t piece_bytes = uint64_t{1} << 20;  // of a long span
  bool has_stand_in = false;                 // another fabric may take what comes while no connection can be made
  uint64_t turn_bytes = uint64_t{2} << 20;   // posted in one turn of the loop: some fabrics copy while they post (I7)
  int attempts = 3;                          // connections that may break under one read
  Duration connect_patience = std::chrono::seconds(5);
  Duration cancel_patience = std::chrono::milliseconds(20);  // then the connection is ended instead
  Duration quiet_patience = std::chrono::seconds(1);         // for what was in flight on an ended connection
  std::shared_ptr<Logger> logger = make_null_logger();       // hears when another fabric begins to stand in
};

// The initiator's side of a plug-in's fabric to one peer: one connection, made when the first job needs it, made anew
// when it breaks. Jobs are cut into pieces that are posted in turns, as far as the window has room. On loop only.
//
//   from        event                     to
//   idle        a job, or a question      connecting
//   connecting  the first flush ended     ready
//   connecting  failed, too slow          idle, and not dialled again for a while
//   ready       lost, or a cancelled operation that does not end    idle
//   any         close()                   closed
class PluginPath final : public RevocablePath, private EndpointUser {
 public:
  // `address`: where the peer's fabric listens. REQUIRES: node.take(owner) said yes; the path gives it back.
  PluginPath(Loop& loop, Node& node, std::string owner, std::string address, PathOptions options);
  ~PluginPath() override;

  const char* fabric() const override { return node_.fabric(); }
  void start(std::shared_ptr<Job> job) override;
  bool cancel(const std::shared_ptr<Job>& job, Task far_quiet) override;
  // The owner has to be asked: its gate is not at hand.
  std::optional<bool> in_force(WordIndex, uint64_t) const override { return std::nullopt; }
  // False also while no connection can be made and another fabric stands in.
  bool reaches(const RegionInfo& region) const override;
  bool reaches_directly(MemoryOps& local, std::span<const RegionPin> pins, const RegionInfo& region) const override;
  std::string describe() const override;

  void retire(const std::shared_ptr<const RegionTable>& table, Task quiet) override;
  bool close() override;

  // Whether a connection stands or has not been tried; one that broke is tried again by itself where something stands
  // in.
  bool usable() const { return !failing(); }
  // Breaks the connection: it is taken for dead.
  void give_up(const std::string& why) { lost(why); }

 private:
  enum class State { idle, connecting, ready, closed };

  // Connecting and its end.
  void connect(bool again = false);
  void on_connected(int32_t result, const std::string& why);
  void connect_later();
  void lost(const std::string& why) override;
  void say_that_others_stand_in(const std::string& why);
  void break_connection(const std::string& why);
  void end_connection(const std::string& why);
  void fail_all(const Error& error);

  // Work.
  void pump();
  void enqueue(const WorkPtr& work);
  bool has_room() const;
  bool post_some(const WorkPtr& work, uint64_t& posted);
  int32_t post(const WorkPtr& work, const Piece& piece, Why& why);
  void plan_pump();
  void on_piece(std::unique_ptr<PieceOperation> operation, int32_t result, const std::string& why);
  void piece_done(const WorkPtr& work, const Piece& piece, int32_t result, const std::string& why);
  void fail(const WorkPtr& work, Error error);
  void settle(const WorkPtr& work);
  void confirm_write(const WorkPtr& work);
  void read_back(const WorkPtr& work, std::vector<size_t> rest);
  void ask_flush(Question::Answer answer);
  void finish(const WorkPtr& work, Status status);
  bool is_taken_back(const RegionInfo& region) const;
  bool wait_for(const std::function<bool()>& condition, Duration patience);
  // Runs `task` when everything that was put before has arrived, or can no longer arrive, at the owner.
  void barrier(Task task);
  bool failing() const { return state_ != State::ready && backoff_ > Duration(0); }
  bool needs_barrier() const { return state_ == State::ready || unsure_; }

  Loop& loop_;
  Node& node_;
  const std::string owner_;
  const std::string address_;
  const PathOptions options_;
  State state_ = State::idle;
  kvf_endpoint* endpoint_ = nullptr;
  uint64_t endpoint_number_ = 0;
  int tries_ = 0;  // to connect again, before what waits for that fails
  KeyRing keys_;
  // Writes may be on their way on a connection that broke: the owner ends it when it takes the next one.
  bool unsure_ = false;
  bool breaking_ = false;
  std::string last_error_;
  bool said_ = false;  // that others stand in
  Duration backoff_{0};
  Timer patience_;
  Timer redial_;
  std::vector<Task> after_connect_;  // bounded by the transfers and regions that asked

  std::unordered_map<const Job*, WorkPtr> works_;
  std::deque<WorkPtr> queue_;  // those with pieces to post, in turn
  InFlight in_flight_;
  std::shared_ptr<const RegionTable> table_;  // the owner's, when it last took regions back
  RegionId newest_ = 0;                       // that was ever in it
  bool pump_planned_ = false;
  const std::shared_ptr<uint64_t> echo_ = std::make_shared<uint64_t>();  // where read-backs land
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvferry::plugin
