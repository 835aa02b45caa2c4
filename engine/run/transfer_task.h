#pragma once

#include <memory>
#include <optional>
#include <string>

#include "common/metrics.h"
#include "engine/fabric/fabric.h"
#include "engine/memory/staging.h"
#include "engine/run/completion.h"

namespace kvferry {

// A transfer's way:
//
//   from       event            to
//   waiting    session_ready    moving
//   moving     moved            notifying, when it carries a notification
//   moving     moved            ended
//   notifying  acknowledged     ended
//   moving     session_lost     waiting, once, when nothing has come of it yet
//   moving     cancel, deadline, failed    fencing, when the far side of a write may still change
//   any        cancel, deadline, failed    ended
//   fencing    fenced, deadline            ended
enum class TransferPhase : uint8_t { waiting, moving, notifying, fencing, ended };
enum class TransferEvent : uint8_t {
  session_ready,
  session_lost,
  moved,
  moved_unannounced,
  acknowledged,
  give_up,
  give_up_write,
  fenced
};

// The table above. An event that a phase does not know leaves it as it is.
TransferPhase transition(TransferPhase from, TransferEvent event);

// One transfer between submit() and its outcome. `completion` is for any thread; everything else is on loop.
struct TransferTask {
  TransferId id = 0;
  std::shared_ptr<Job> job;  // null: a notification alone
  std::optional<Notification> notification;
  TimePoint submitted;
  TimePoint deadline = kNever;
  TransferPhase phase = TransferPhase::waiting;
  Path* path = nullptr;    // while moving
  EventId awaited = 0;     // event of the local memory's kind, that it waits for
  Staging::Watch watch;    // of that event
  bool redialled = false;  // a session ended under it and it waited for the next, once
  bool exposed = false;    // what a lost session carried of it may land until the next session has replaced that
  bool synced = false;     // the peer's region table was brought up to date for it once
  Status verdict;          // while fencing: what the outcome will be
  std::unique_ptr<Timer> timer;
  std::shared_ptr<Completion> completion = std::make_shared<Completion>();
  uint64_t incarnation = 0;  // of the peer that the pairs belong to; 0: any

  bool advance(TransferEvent event) {
    const TransferPhase next = transition(phase, event);
    const bool moved = next != phase;
    phase = next;
    return moved;
  }
};

// Checks every pair against the peer's table and fills job.remote. Nothing has moved when it refuses.
Status check_against(const std::shared_ptr<const RegionTable>& table, Job& job);

// I5: spans of one incarnation say nothing about another. `known`: the incarnation that the session is with.
Status check_incarnation(const TransferTask& task, uint64_t known);

// One sentence that says what failed, to whom, after how long, why, by which way and how far it had come. `fabric`:
// null when nothing had started.
Error explain_failure(const TransferTask& task, const std::string& peer_id, const std::string& address, TimePoint now,
                      const char* fabric, const Error& why);

struct TransferMetrics {
  Counter& ok;
  Counter& failed;
  Counter& bytes;
  Histogram& seconds;

  static TransferMetrics of(MetricsRegistry& metrics);
  void record(const Outcome& outcome, Duration took);
};

}  // namespace kvferry
