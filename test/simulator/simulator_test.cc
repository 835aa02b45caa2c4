#include <gtest/gtest.h>

#include "common/check.h"
#include "engine/io/socket_network.h"
#include "test/simulator/scenarios.h"
#include "test/simulator/sim_network.h"
#include "test/support/sanitized.h"

namespace kvferry::simulator {
namespace {

std::string told(const Verdict& verdict) {
  std::string text = verdict.failure;
  const size_t from = verdict.history.size() > 40 ? verdict.history.size() - 40 : 0;
  for (size_t i = from; i < verdict.history.size(); ++i) text += "\n" + verdict.history[i];
  return text;
}

// One connection between two hosts.
struct TwoEnds {
  TwoEnds() {
    auto listening = networks[1].listen(Wires::address_of(1),
                                        [this](std::unique_ptr<Stream> stream) { accepted = std::move(stream); });
    KVF_CHECK(listening.ok());
    listener = std::move(*listening);
    auto dialling = networks[0].dial(Wires::address_of(1));
    KVF_CHECK(dialling.ok());
    dialled = std::move(*dialling);
    run_for(std::chrono::seconds(1));
    KVF_CHECK(accepted != nullptr && !accepted->torn());
  }
  void run_for(Duration span) {
    const TimePoint until = timeline.now() + span;
    while (timeline.now() < until) timeline.step(until);
  }

  Timeline timeline;
  History history{timeline, false};
  SeededRandom random{1};
  Wires wires{timeline, random, history, 2, {}};
  SimLoop loops[2] = {{timeline, random, {}, [] {}}, {timeline, random, {}, [] {}}};
  SimNetwork networks[2] = {{wires, 0, loops[0]}, {wires, 1, loops[1]}};
  std::unique_ptr<Listener> listener;
  std::unique_ptr<Stream> dialled;
  std::unique_ptr<Stream> accepted;
};

TEST(Wires, AnEndWhoseResetIsLostIsMissedByTheOther) {
  TwoEnds ends;
  ends.wires.block(0, 1);
  ends.dialled->reset_on_close();
  ends.dialled.reset();
  ends.run_for(std::chrono::seconds(1));
  ends.wires.unblock(0, 1);
  ends.run_for(std::chrono::seconds(1));
  EXPECT_FALSE(ends.accepted->torn());
  EXPECT_EQ(ends.wires.lone_streams_of(1), 1u);
  ends.run_for(SocketOptions().silence);
  EXPECT_TRUE(ends.accepted->torn());
}

TEST(Wires, AHostWithoutPowerIsMissedByTheOther) {
  TwoEnds ends;
  ends.wires.set_up(0, false);
  ends.wires.drop_host(0, true);
  ends.run_for(std::chrono::seconds(1));
  EXPECT_FALSE(ends.accepted->torn());
  ends.run_for(SocketOptions().silence);
  EXPECT_TRUE(ends.accepted->torn());
}

TEST(Simulator, ASeedRunsTwiceInTheSameWay) {
  for (const Scenario scenario : {run_transfers, run_parcels})
    for (uint64_t seed = 1; seed <= (test::kSanitized ? 5 : 25); ++seed) {
      const Verdict first = scenario(seed, false);
      const Verdict again = scenario(seed, true);
      ASSERT_EQ(first.digest, again.digest) << "seed " << seed;
      ASSERT_EQ(first.events, again.events) << "seed " << seed;
      ASSERT_GT(again.history.size(), 10u);
    }
}

TEST(Simulator, DifferentSeedsAreDifferentRuns) {
  EXPECT_NE(run_transfers(1, false).digest, run_transfers(2, false).digest);
}

// Seeds that found something, each with what it was. A change to the simulator changes what a seed does: they guard the
// engine as long as nobody touches the scenario, and cost little after that.
struct Found {
  Scenario scenario;
  uint64_t seed;
  const char* what;
};

TEST(Simulator, SeedsThatFoundBugsHold) {
  constexpr Found kFound[] = {
      {run_transfers, 19, "a cancelled write outlived its session and used the session's path"},
      {run_transfers, 36,
       "a write sent again on a second lane was called quiet while the first lane's bytes still landed"},
      {run_transfers, 53, "a swallowed lane was waited on by every later transfer"},
      {run_transfers, 254, "a read that named a region of a dead incarnation was served by its successor"},
      {run_transfers, 1795657316091, "an end whose other end was reset from outside was never told by its kernel"},
      {run_transfers, 1795708667078862290,
       "a write that waited for the next session was called quiet while the lost one's bytes still landed"},
      {run_parcels, 47, "a stream that did not fit into its lane at once was never gone on with"},
      {run_parcels, 97, "an old connection's hello, handled late, made the owner forget a living reader"},
      {run_parcels, 137, "a lane that broke under a stream took the stream's list with it"},
      {run_parcels, 1410, "a connection's patience ended in the turn in which it became a lane"},
      {run_parcels, 483, "a session that broke over a settle aborted the reader"},
      {run_parcels, 1795368216088, "a former life's hello, handled late, made the owner forget the reader that lives"},
      {run_parcels, 1795819465622221379, "a cancelled read kept its staging buffer until its timer's turn came"},
  };
  for (const Found& found : kFound) {
    const Verdict verdict = found.scenario(found.seed, true);
    EXPECT_TRUE(verdict.failure.empty()) << "seed " << found.seed << " (" << found.what << "): " << told(verdict);
  }
}

}  // namespace
}  // namespace kvferry::simulator
