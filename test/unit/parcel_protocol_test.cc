#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "test/support/parcel_node.h"

// The points of the parcel protocol, each by its name, on virtual time: real owners and readers, real sessions, wires
// that the test holds in its hand.

namespace kvferry::test {
namespace {

using namespace std::chrono_literals;  // NOLINT(google-build-using-namespace)
using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class ParcelProtocol : public ::testing::Test {
 protected:
  static NodeOptions named(const std::string& name, uint32_t tp = 1, uint32_t rank = 0) {
    NodeOptions options;
    options.name = name;
    options.tp = tp;
    options.tp_rank = rank;
    return options;
  }
  static ParcelSpec spec(const std::string& id, std::vector<uint32_t> blocks, Duration lease = 60s) {
    ParcelSpec out;
    out.transfer_id = id;
    out.tokens = blocks.size() * ParcelNode::kBlockTokens;
    out.blocks = {{0, std::move(blocks)}};
    out.fingerprint = "prompt";
    out.lease = lease;
    return out;
  }
  void publish(const ParcelSpec& asked) {
    const Status status = owner_.owner().publish(asked);
    ASSERT_TRUE(status.ok()) << status.error().to_string();
  }

  struct Read {
    ParcelNode* node = nullptr;
    ParcelReader::ReadId id = 0;
    std::optional<ParcelOutcome> outcome;
  };
  using ReadPtr = std::shared_ptr<Read>;
  ParcelRead request(ParcelNode& node, const std::string& id, std::vector<uint32_t> blocks, Duration timeout = 100s) {
    ParcelRead asked;
    asked.transfer_id = id;
    asked.owners = {node.peer(owner_)};
    asked.group_instance_id = "decoder";
    asked.fingerprint = "prompt";
    asked.layout = std::make_shared<const KvLayout>(node.layout());
    asked.blocks = {{0, std::move(blocks)}};
    asked.deadline = node.now() + timeout;
    return asked;
  }
  ReadPtr read(ParcelNode& node, ParcelRead asked) {
    auto reading = std::make_shared<Read>();
    reading->node = &node;
    reading->id = node.reader().read(std::move(asked), [reading](const ParcelOutcome& outcome) {
      EXPECT_FALSE(reading->outcome) << "two outcomes";
      reading->outcome = outcome;
    });
    return reading;
  }
  ReadPtr read(ParcelNode& node, const std::string& id, std::vector<uint32_t> blocks) {
    return read(node, request(node, id, std::move(blocks)));
  }
  ReadState end_of(const ReadPtr& reading, Duration patience = 100s) {
    EXPECT_TRUE(scene_.run_until(patience, [&] { return reading->outcome.has_value(); })) << "no outcome";
    return reading->outcome ? reading->outcome->state : ReadState::waiting;
  }
  std::optional<ReleaseReason> released(const std::string& id, Duration patience = 1s) {
    std::optional<ReleaseReason> why;
    scene_.run_until(patience, [&] {
      for (const ParcelReleased& one : owner_.released()) {
        EXPECT_EQ(one.transfer_id, id);
        EXPECT_FALSE(why) << "told twice";
        why = one.why;
      }
      return why.has_value();
    });
    return why;
  }
  bool granted(const std::string& id) {
    return scene_.run_until(5s, [&] {
      const auto status = owner_.owner().status(id);
      return status && status->readers > 0;
    });
  }
  void reset_all() {
    for (int i = 0; i < 16; ++i) scene_.wires.reset_any(false);
  }
  // The wires between owner and reader, both ways.
  void cut(bool off) {
    for (const auto& [from, to] : {std::pair{0, 1}, std::pair{1, 0}}) {
      const auto a = static_cast<simulator::HostIndex>(from);
      const auto b = static_cast<simulator::HostIndex>(to);
      off ? scene_.wires.block(a, b) : scene_.wires.unblock(a, b);
    }
  }
  // Bytes from the owner take so long that reads last seconds.
  void slow_down(simulator::HostIndex reader, Duration per_byte) { scene_.wires.throttle(0, reader, per_byte); }

  ParcelScene scene_;
  ParcelNode owner_{scene_, 0, named("owner")};
  ParcelNode reader_{scene_, 1, named("reader")};
};

// ---- before publish

TEST_F(ParcelProtocol, AClaimBeforePublishWaitsWhileItsIdIsAnnounced) {
  ASSERT_TRUE(owner_.owner().announce("t", 60s).ok());
  const ReadPtr reading = read(reader_, "t", {1});
  scene_.run_for(40s);  // longer than an id that nobody announced is waited for
  EXPECT_FALSE(reading->outcome);
  publish(spec("t", {5}));
  EXPECT_EQ(end_of(reading), ReadState::accepted);
}

TEST_F(ParcelProtocol, AnIdNeverAnnouncedIsGoneAfterAShortTime) {
  const TimePoint began = scene_.timeline.now();
  EXPECT_EQ(end_of(read(reader_, "t", {1})), ReadState::gone);
  EXPECT_GE(scene_.timeline.now() - began, 30s);
  EXPECT_LE(scene_.timeline.now() - began, 31s);
}

TEST_F(ParcelProtocol, AnotherExpectedInstanceIdGivesGoneAtOnce) {
  const TimePoint began = scene_.timeline.now();
  ParcelRead asked = request(reader_, "t", {1});
  asked.expected_instance_id = "the instance before";
  EXPECT_EQ(end_of(read(reader_, asked)), ReadState::gone);
  EXPECT_LE(scene_.timeline.now() - began, 1s);
}

TEST_F(ParcelProtocol, AWithdrawnIdIsGoneAtOnceAndStaysSo) {
  ASSERT_TRUE(owner_.owner().announce("t", 60s).ok());
  const ReadPtr reading = read(reader_, "t", {1});
  scene_.run_for(1s);
  owner_.owner().withdraw("t");
  EXPECT_EQ(end_of(reading, 1s), ReadState::gone);
  EXPECT_EQ(end_of(read(reader_, "t", {1}), 1s), ReadState::gone);
}

TEST_F(ParcelProtocol, AReleaseBeforePublishLeavesATombstoneForOneLease) {
  ASSERT_TRUE(owner_.owner().announce("t", 60s).ok());
  owner_.owner().release("t", false);
  publish(spec("t", {5}));
  EXPECT_EQ(released("t"), ReleaseReason::aborted);
  EXPECT_EQ(end_of(read(reader_, "t", {1}), 1s), ReadState::gone);
  scene_.run_for(61s);
  publish(spec("t", {5}));  // the lease is over, and with it the tombstone
  EXPECT_EQ(end_of(read(reader_, "t", {1})), ReadState::accepted);
}

TEST_F(ParcelProtocol, PublishingALivingOrReleasedIdIsRefusedAndTheBlocksGoStraightBack) {
  publish(spec("t", {5}));
  EXPECT_EQ(owner_.owner().publish(spec("t", {6})).error().code, ErrorCode::already_exists);
  owner_.owner().release("t", true);
  EXPECT_EQ(released("t"), ReleaseReason::released);
  publish(spec("t", {6}));
  EXPECT_EQ(released("t"), ReleaseReason::aborted);
  EXPECT_EQ(owner_.owner().announce("t", 60s).error().code, ErrorCode::gone);
}

// ---- who reads

TEST_F(ParcelProtocol, TheGroupIsLearntFromTheFirstClaimAndAllItsRanksMustSettle) {
  ParcelNode first(scene_, 2, named("decoder-0", 2, 0));
  ParcelNode second(scene_, 3, named("decoder-1", 2, 1));
  publish(spec("t", {5}));
  EXPECT_EQ(end_of(read(first, "t", {1})), ReadState::accepted);
  EXPECT_EQ(released("t", 5s), std::nullopt) << "one of two ranks has settled";
  EXPECT_EQ(end_of(read(second, "t", {1})), ReadState::accepted);
  EXPECT_EQ(released("t"), ReleaseReason::settled);
}

TEST_F(ParcelProtocol, AnotherGroupIsAConflict) {
  ParcelNode first(scene_, 2, named("decoder-0", 2, 0));
  publish(spec("t", {5}));
  EXPECT_EQ(end_of(read(first, "t", {1})), ReadState::accepted);
  ParcelRead other = request(reader_, "t", {1});
  other.group_instance_id = "another decoder";
  const ReadPtr refused = read(reader_, other);
  EXPECT_EQ(end_of(refused), ReadState::conflict);
  EXPECT_THAT(refused->outcome->status.error().message, HasSubstr("reader group"));
  EXPECT_EQ(end_of(read(reader_, "t", {1})), ReadState::conflict) << "the same name with other sizes";
}

TEST_F(ParcelProtocol, AFingerprintThatDiffersIsRefusedByName) {
  publish(spec("t", {5}));
  ParcelRead wrong = request(reader_, "t", {1});
  wrong.fingerprint = "another prompt";
  const ReadPtr refused = read(reader_, wrong);
  EXPECT_EQ(end_of(refused), ReadState::conflict);
  EXPECT_THAT(refused->outcome->status.error().message, HasSubstr("fingerprint"));
}

// A fingerprint holds a hash of the whole prompt: ids that a proxy has mixed up fit nothing.
TEST_F(ParcelProtocol, TwoSwappedTransferIdsGiveNoAnswerFromTheWrongKv) {
  owner_.fill(std::byte{0xAA});
  reader_.fill(std::byte{0x11});
  ParcelSpec a = spec("a", {5});
  ParcelSpec b = spec("b", {6});
  a.fingerprint = "model|prompt a";
  b.fingerprint = "model|prompt b";
  publish(a);
  publish(b);
  ParcelRead for_a = request(reader_, "b", {1});
  ParcelRead for_b = request(reader_, "a", {2});
  for_a.fingerprint = "model|prompt a";
  for_b.fingerprint = "model|prompt b";
  EXPECT_EQ(end_of(read(reader_, for_a)), ReadState::conflict);
  EXPECT_EQ(end_of(read(reader_, for_b)), ReadState::conflict);
  EXPECT_TRUE(reader_.block_is(1, std::byte{0x11}) && reader_.block_is(2, std::byte{0x11})) << "bytes moved";
}

TEST_F(ParcelProtocol, MoreKeepsTheRankExpectedUntilItsLastRead) {
  publish(spec("t", {5}));
  for (const bool more : {true, true, false}) {
    ParcelRead asked = request(reader_, "t", {1});
    asked.more = more;
    EXPECT_EQ(end_of(read(reader_, asked)), ReadState::accepted);
    EXPECT_EQ(released("t", 3s), more ? std::nullopt : std::optional(ReleaseReason::settled));
  }
}

// ---- readers that fail

TEST_F(ParcelProtocol, AReaderWhoseSessionStaysDeadBeyondTheGraceHasFailed) {
  slow_down(1, 100us);
  publish(spec("t", {5, 6, 7, 8}));
  static_cast<void>(read(reader_, "t", {1, 2, 3, 4}));
  ASSERT_TRUE(granted("t"));
  const TimePoint died = scene_.timeline.now();
  reader_.kill(true);
  EXPECT_EQ(released("t", 30s), ReleaseReason::reader_failed);
  EXPECT_GE(scene_.timeline.now() - died, 5s);
  EXPECT_LE(scene_.timeline.now() - died, 11s) << "heartbeats 3 s, the grace 5 s";
}

TEST_F(ParcelProtocol, AReaderThatIsBackWithinTheGraceKeepsItsClaim) {
  slow_down(1, 20us);
  publish(spec("t", {5, 6, 7, 8}));
  const ReadPtr reading = read(reader_, "t", {1, 2, 3, 4});
  ASSERT_TRUE(granted("t"));
  reset_all();
  EXPECT_EQ(end_of(reading), ReadState::accepted);
  EXPECT_EQ(released("t"), ReleaseReason::settled);
}

// It takes the parcel over while the former one's session still stands; else the blocks went back when it came.
TEST_F(ParcelProtocol, ANewIncarnationOfARankReplacesTheOneThatDiedWithoutWaitingForIt) {
  slow_down(1, 100us);
  publish(spec("t", {5, 6, 7, 8}));
  static_cast<void>(read(reader_, "t", {1, 2, 3, 4}));
  ASSERT_TRUE(granted("t"));
  reader_.kill(true);
  reader_.start();
  slow_down(1, 0us);
  const ReadState end = end_of(read(reader_, "t", {1, 2, 3, 4}), 3s);
  EXPECT_TRUE(end == ReadState::accepted || end == ReadState::gone) << to_string(end);
  EXPECT_EQ(released("t"), end == ReadState::accepted ? ReleaseReason::settled : ReleaseReason::reader_failed);
}

TEST_F(ParcelProtocol, WhenOneRankHasFailedAndTheRestAreQuietTheParcelIsGivenBack) {
  ParcelNode first(scene_, 2, named("decoder-0", 2, 0));
  ParcelNode second(scene_, 3, named("decoder-1", 2, 1));
  slow_down(2, 100us);
  publish(spec("t", {5, 6, 7, 8}));
  const ReadPtr failing = read(first, "t", {1, 2, 3, 4});
  ASSERT_TRUE(granted("t"));
  first.reader().cancel(failing->id);
  EXPECT_EQ(released("t", 5s), ReleaseReason::reader_failed);
  EXPECT_EQ(end_of(read(second, "t", {1, 2, 3, 4})), ReadState::gone);
}

// ---- claims that nobody reads any more, though their reader lives

TEST_F(ParcelProtocol, AClaimThatIsGivenUpWhileItWaitsIsNotGrantedToNobody) {
  ASSERT_TRUE(owner_.owner().announce("t", 60s).ok());
  const ReadPtr reading = read(reader_, "t", {1});
  scene_.run_for(1s);
  reader_.reader().cancel(reading->id);
  scene_.run_for(1s);
  publish(spec("t", {5}));
  EXPECT_EQ(owner_.owner().status("t")->readers, 0u);
  EXPECT_EQ(owner_.owner().release("t", false), ReleaseAnswer::done) << "it waits for a reader that is gone";
}

TEST_F(ParcelProtocol, AReadThatEndsWithoutASessionLeavesNoClaimWhenItsReaderIsBack) {
  slow_down(1, 100us);
  publish(spec("t", {5, 6, 7, 8}, 200s));
  const ReadPtr reading = read(reader_, request(reader_, "t", {1, 2, 3, 4}, 1s));
  ASSERT_TRUE(granted("t"));
  reset_all();
  cut(true);
  EXPECT_EQ(end_of(reading), ReadState::failed);
  cut(false);
  slow_down(1, 0us);
  EXPECT_NE(end_of(read(reader_, request(reader_, "another", {1}, 1s))), ReadState::accepted) << "brings a session";
  EXPECT_EQ(released("t", 10s), ReleaseReason::reader_failed);
}

TEST_F(ParcelProtocol, ASettleThatIsLostWithItsSessionHoldsNoBlocksWhenItsReaderIsBack) {
  publish(spec("t", {5}, 200s));
  const ReadPtr reading = read(reader_, "t", {1});
  EXPECT_EQ(end_of(reading), ReadState::accepted);  // the settle leaves later, by itself
  cut(true);
  reset_all();
  scene_.run_for(1s);
  cut(false);
  EXPECT_NE(end_of(read(reader_, request(reader_, "another", {1}, 1s))), ReadState::accepted) << "brings a session";
  EXPECT_EQ(released("t", 15s), ReleaseReason::reader_failed);
}

// ---- what an outcome says

TEST_F(ParcelProtocol, ADeadlineNamesThePeerTheStageAndHowFarItWas) {
  publish(spec("a session is there", {5}));
  ASSERT_EQ(end_of(read(reader_, "a session is there", {1})), ReadState::accepted);
  cut(true);
  const ReadPtr waiting = read(reader_, request(reader_, "t", {1}, 1s));
  EXPECT_EQ(end_of(waiting), ReadState::failed);
  const std::string peer = "parcel \"t\" of peer \"owner\" (" + owner_.address().to_string() + ") failed after ";
  EXPECT_EQ(waiting->outcome->status.error().message, peer + "1.0 s: deadline exceeded; it had not granted the claim");
  EXPECT_EQ(waiting->outcome->status.error().peer, "owner");
  cut(false);

  scene_.run_for(10s);
  slow_down(1, 100us);
  publish(spec("t", {5, 6, 7, 8}));
  const ReadPtr reading = read(reader_, request(reader_, "t", {1, 2, 3, 4}, 1s));
  EXPECT_EQ(end_of(reading), ReadState::failed);
  EXPECT_THAT(reading->outcome->status.error().message,
              AllOf(StartsWith(peer + "1.0 s: deadline exceeded; its bytes were on the way; fabric tcp; "),
                    EndsWith(" of 65536 bytes here")));
  EXPECT_EQ(reading->outcome->status.error().where, "tcp");
  slow_down(1, 0us);

  scene_.run_for(10s);
  owner_.kill(true);
  const ReadPtr silent = read(reader_, request(reader_, "t", {1}, 2s));
  EXPECT_EQ(end_of(silent), ReadState::failed);
  EXPECT_THAT(silent->outcome->status.error().message,
              AllOf(StartsWith(peer + "2.0 s"), HasSubstr("no heartbeat for")));
}

// ---- release

TEST_F(ParcelProtocol, AnUnforcedReleaseTakesEffectAfterTheLastLiveClaim) {
  slow_down(1, 20us);
  publish(spec("t", {5, 6, 7, 8}));
  const ReadPtr reading = read(reader_, "t", {1, 2, 3, 4});
  ASSERT_TRUE(granted("t"));
  EXPECT_EQ(owner_.owner().release("t", false), ReleaseAnswer::waits_for_readers);
  EXPECT_TRUE(owner_.released().empty());
  EXPECT_EQ(end_of(reading), ReadState::accepted);
  EXPECT_EQ(released("t"), ReleaseReason::released);
}

TEST_F(ParcelProtocol, AForcedReleaseMovesTheGenerationNowAndReadersGetStale) {
  slow_down(1, 20us);
  owner_.fill(std::byte{0xAA});
  publish(spec("t", {5, 6, 7, 8}));
  const ReadPtr reading = read(reader_, "t", {1, 2, 3, 4});
  ASSERT_TRUE(granted("t"));
  EXPECT_EQ(owner_.owner().release("t", true), ReleaseAnswer::done);
  const auto events = owner_.released();  // in this very call
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].why, ReleaseReason::released);
  owner_.fill(std::byte{0xEE});
  EXPECT_EQ(end_of(reading), ReadState::stale);
}

TEST_F(ParcelProtocol, AReleaseByAReaderNeedsNoGroup) {
  ParcelNode stranger(scene_, 2, named("stranger"));
  publish(spec("t", {5}));
  stranger.reader().release(stranger.peer(owner_), "t", false, stranger.now() + 10s);
  EXPECT_EQ(released("t", 5s), ReleaseReason::released);
  stranger.reader().release(stranger.peer(owner_), "t", true, stranger.now() + 10s);
  EXPECT_EQ(released("t", 5s), std::nullopt) << "idempotent";
}

// ---- the lease

TEST_F(ParcelProtocol, ALiveClaimExtendsTheLease) {
  slow_down(1, 500us);
  publish(spec("t", {5, 6, 7}, 4s));
  const TimePoint began = scene_.timeline.now();
  EXPECT_EQ(end_of(read(reader_, "t", {1, 2, 3})), ReadState::accepted);
  EXPECT_GE(scene_.timeline.now() - began, 6s) << "the test read too fast to mean anything";
  EXPECT_EQ(released("t"), ReleaseReason::settled);
}

TEST_F(ParcelProtocol, ExtensionsEndAtTheOwnersLimit) {
  NodeOptions options = named("strict");
  options.limits.longest_lease = 6s;
  ParcelNode strict(scene_, 2, options);
  slow_down(1, 0us);
  scene_.wires.throttle(2, 1, 500us);
  ASSERT_TRUE(strict.owner().publish(spec("t", {5, 6, 7}, 4s)).ok());
  const TimePoint began = scene_.timeline.now();
  ParcelRead asked = request(reader_, "t", {1, 2, 3});
  asked.owners = {reader_.peer(strict)};
  const ReadPtr reading = read(reader_, asked);
  std::vector<ParcelReleased> events;
  ASSERT_TRUE(scene_.run_until(20s, [&] {
    events = strict.released();
    return !events.empty();
  }));
  EXPECT_EQ(events[0].why, ReleaseReason::expired);
  EXPECT_GE(scene_.timeline.now() - began, 6s);
  EXPECT_LE(scene_.timeline.now() - began, 6010ms);
  // What left the owner before the lease ended, its trailer with it, is right however late it arrives.
  const ReadState end = end_of(reading);
  EXPECT_TRUE(end == ReadState::stale || end == ReadState::accepted) << static_cast<int>(end);
}

TEST_F(ParcelProtocol, ALeaseWithoutAClaimEndsWithinTenMilliseconds) {
  publish(spec("t", {5}, 4s));
  const TimePoint began = scene_.timeline.now();
  EXPECT_EQ(released("t", 10s), ReleaseReason::expired);
  EXPECT_GE(scene_.timeline.now() - began, 4s);
  EXPECT_LE(scene_.timeline.now() - began, 4010ms);
}

}  // namespace
}  // namespace kvferry::test
