#include <gmock/gmock.h>

#include <csignal>
#include <ctime>
#include <future>

#include "test/support/peek.h"
#include "test/system/faults.h"

// A peer that dies, stops, continues or comes back while a transfer is under way.

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

struct Case {
  const char* fabric;
  Operation operation;
  AuthMode auth = AuthMode::open;
  const char* transports = "";  // of a plug-in
};

// By a device an owner is read and written without its CPU, as on one host.
bool is_one_sided(const Case& tested) {
  return tested.fabric != std::string("tcp");
}

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return std::string(info.param.fabric) + (info.param.operation == Operation::read ? "_read" : "_write") +
         (info.param.auth == AuthMode::open ? "" : "_" + std::string(to_string(info.param.auth)));
}

class PeerFaults : public ::testing::TestWithParam<Case> {
 protected:
  const size_t bytes_ = (has_rdma_device() ? size_t{16} : size_t{64}) << 20;  // a guest's moves 25 MB/s

  explicit PeerFaults(int missed_heartbeats = kPatient)
      : initiator_(GetParam().fabric, bytes_, auth_of(GetParam().auth), milliseconds(200 * plugin_slower()),
                   missed_heartbeats, GetParam().transports) {}

  Target start_target() {
    Target::Options options;
    options.fabric = GetParam().fabric;
    options.bytes = bytes_;
    options.heartbeat_ms =
        500 * plugin_slower();  // more patient than the initiator: a busy machine must not let the target end it first
    options.missed_heartbeats = missed_heartbeats_;
    options.environment = environment_of(auth_of(GetParam().auth));
    if (*GetParam().transports != '\0') {
      options.environment[transports_variable(GetParam().fabric)] = GetParam().transports;
      options.environment["KVFERRY_RDMA_HOST"] = rdma_host();
    }
    return Target::start(options);
  }

  // Begins the transfer and returns once a quarter of it has landed, or it is over.
  Transfer begin(Target& target, Duration timeout) {
    ++seed_;
    initiator_.fill(GetParam().operation == Operation::write ? seed_ : uint8_t{0});
    if (GetParam().operation == Operation::read) {
      EXPECT_EQ(target.ask("fill " + std::to_string(seed_)), "ok");
    }
    const Transfer transfer =
        must(initiator_.engine().submit(initiator_.request(target, GetParam().operation, timeout)));
    const uint64_t quarter = bytes_ / 4;
    EXPECT_TRUE(eventually([&] { return transfer.done() || landed(target, quarter); }));
    return transfer;
  }

  bool landed(const Target& target, uint64_t offset) {
    if (GetParam().operation == Operation::write) return target.has_byte(offset, std::byte{seed_});
    return peek(initiator_.memory().data() + offset) == std::byte{seed_};
  }

  // Runs `fault` in the middle of transfers until it has hit one there; that one's outcome.
  template <class Fault, class Repair>
  Outcome hit(Target& target, Duration timeout, Fault fault, Repair repair) {
    for (int attempt = 0; attempt < 20; ++attempt) {
      const Stopwatch watch;
      const Transfer transfer = begin(target, timeout);
      fault();
      const Outcome outcome = transfer.wait();
      EXPECT_LT(watch.elapsed(), timeout + kSlack);
      if (in_the_middle(outcome, bytes_)) return outcome;
      repair();
    }
    ADD_FAILURE() << "the fault never landed in the middle of a transfer";
    return {};
  }

  int missed_heartbeats_ = kPatient;  // the target's
  Initiator initiator_;
  uint8_t seed_ = 0;
};

class StoppedPeers : public PeerFaults {
 protected:
  StoppedPeers() : PeerFaults(4) {}
};

// The kernel knows that the peer is dead, the engine does not, whose loop this callback has: it hears of it by what it
// sends in order to cancel.
class CancelledWrites : public ::testing::TestWithParam<bool> {
 protected:
  Transfer ask(const Target& target, Operation operation, Duration timeout, uint64_t bytes) {
    return must(
        initiator_.engine().submit(initiator_.request(target.address(), target.region(), operation, timeout, bytes)));
  }
  // The outcome of a write that is cancelled so, of which something was done before or nothing.
  Outcome cancelled(bool begun) {
    Target::Options options;
    options.bytes = kBytes;
    options.missed_heartbeats = kPatient;
    Target target = Target::start(options);
    EXPECT_TRUE(ask(target, Operation::write, seconds(30), 4096).wait().status.ok());
    const auto stop = [&] { EXPECT_TRUE(target.process().stop().ok()); };
    if (!begun) stop();
    initiator_.fill(1);
    const Transfer write = ask(target, Operation::write, seconds(60), kBytes);
    EXPECT_TRUE(!begun || eventually([&] { return write.done() || target.has_byte(kBytes / 4, std::byte{1}); }));
    if (begun) stop();
    std::promise<void> told;
    ask(target, Operation::read, milliseconds(200), 4096).on_done([&](const Outcome&) {
      EXPECT_TRUE(target.process().kill().ok());
      write.cancel();
      told.set_value();
    });
    told.get_future().wait();
    const bool ended = eventually([&] { return write.done(); });
    EXPECT_TRUE(ended) << "no outcome";
    return ended ? write.wait() : Outcome{};
  }

  static constexpr size_t kBytes = size_t{64} << 20;
  Initiator initiator_{"tcp", kBytes};
};
INSTANTIATE_TEST_SUITE_P(Begun, CancelledWrites, ::testing::Bool());

TEST_P(CancelledWrites, EndWhenTheirCancelIsWhatBringsTheNewsOfThePeersDeath) {
  for (int attempt = 0; attempt < 20 && !HasFailure(); ++attempt) {
    const Outcome outcome = cancelled(GetParam());
    if (outcome.status.ok()) continue;  // it was over before the target could be stopped
    EXPECT_EQ(outcome.remote, RemoteQuiet::unknown) << text_of(outcome);
    return;
  }
  ADD_FAILURE() << "no write was under way";
}

TEST_P(PeerFaults, KilledInTheMiddleAndRestartedOnTheSamePort) {
  Target target = start_target();
  const Outcome outcome = hit(
      target, seconds(20), [&] { ASSERT_TRUE(target.process().kill().ok()); },
      [&] { target = Target::start(target.successor()); });
  ASSERT_FALSE(outcome.status.ok());
  EXPECT_EQ(outcome.status.error().code, ErrorCode::peer_lost) << text_of(outcome);
  EXPECT_EQ(outcome.fabric, GetParam().fabric);
  EXPECT_THAT(text_of(outcome), ::testing::ContainsRegex("transfer to peer \"p0\" \\(127.0.0.1:[0-9]+\\) failed after "
                                                         "[0-9]+.[0-9] s: .*; fabric " +
                                                         std::string(GetParam().fabric) + "; [0-9]+ of 256 spans"));

  const RegionId old_region = target.region();
  target = Target::start(target.successor());
  // I5: what named memory of the process that died names nothing of its successor's.
  const Outcome stale = initiator_.engine().transfer(
      initiator_.request(target.address(), old_region, GetParam().operation, seconds(20), 4096));
  EXPECT_EQ(stale.status.error().code, ErrorCode::not_found) << text_of(stale);
  expect_works(initiator_, target);
}

TEST_P(PeerFaults, RestartedOverAndOver) {
  Target target = start_target();
  for (int round = 0; round < (has_rdma_device() ? 2 : 4); ++round) {
    expect_works(initiator_, target);
    const uint64_t before = must(initiator_.engine().peer(target.address())).incarnation();
    ASSERT_TRUE(target.process().kill().ok());
    target = Target::start(target.successor());
    const PeerRef peer = must(initiator_.engine().peer(target.address()));
    ASSERT_TRUE(eventually([&] { return peer.connect(seconds(5)).ok() && peer.incarnation() != before; }));
  }
  expect_works(initiator_, target);
}

// On one host, and by a device, a stopped owner stops nothing; over tcp the deadline ends what it holds up.
TEST_P(PeerFaults, StoppedInTheMiddleAndContinued) {
  Target target = start_target();
  if (is_one_sided(GetParam())) {
    static_cast<void>(begin(target, seconds(20)).wait());
    ASSERT_TRUE(target.process().stop().ok());
    const Outcome outcome = initiator_.engine().transfer(initiator_.request(target, GetParam().operation, seconds(15)));
    EXPECT_TRUE(outcome.status.ok()) << text_of(outcome);
  } else {
    const Outcome outcome = hit(
        target, milliseconds(500), [&] { ASSERT_TRUE(target.process().stop().ok()); },
        [&] { ASSERT_TRUE(target.process().resume().ok()); });
    ASSERT_FALSE(outcome.status.ok());
    EXPECT_EQ(outcome.status.error().code, ErrorCode::deadline_exceeded) << text_of(outcome);
    EXPECT_EQ(outcome.remote, GetParam().operation == Operation::read ? RemoteQuiet::quiet : RemoteQuiet::unknown);
  }
  ASSERT_TRUE(target.process().resume().ok());
  // The session may still end of the silence that was.
  const PeerRef peer = must(initiator_.engine().peer(target.address()));
  EXPECT_TRUE(eventually([&] {
    return must(initiator_.engine().notify(peer, {"n", ""}, seconds(5))).wait().status.ok();
  }));
  expect_works(initiator_, target);
}

TEST_P(StoppedPeers, StoppedForLongerThanTheHeartbeatsAllow) {
  Target target = start_target();
  const Outcome outcome = hit(
      target, seconds(20), [&] { ASSERT_TRUE(target.process().stop().ok()); },
      [&] { ASSERT_TRUE(target.process().resume().ok()); });
  ASSERT_FALSE(outcome.status.ok());
  EXPECT_EQ(outcome.status.error().code, ErrorCode::peer_lost) << text_of(outcome);
  // The whole sentence, as the reference gives it.
  EXPECT_THAT(text_of(outcome),
              ::testing::MatchesRegex("transfer to peer \"p0\" \\(127\\.0\\.0\\.1:[0-9]+\\) failed after "
                                      "[0-9]+\\.[0-9] s: no heartbeat for [0-9]+\\.[0-9] s; fabric tcp; "
                                      "[0-9]+ of 256 spans done"));
  ASSERT_TRUE(target.process().resume().ok());
  expect_works(initiator_, target);
}

// Whoever has the port now is no engine: the next use says so in bounded time, and finds the peer when it is back.
class StrangersOnThePort : public PeerFaults {};

TEST_P(StrangersOnThePort, AreNotTakenForThePeer) {
  Target target = start_target();
  const std::string port = target.address().substr(target.address().rfind(':') + 1);
  for (const char* kind : {"http", "tls", "random", "silent"}) {
    SCOPED_TRACE(kind);
    std::optional<Process> stranger;
    const Outcome lost = hit(
        target, seconds(20),
        [&] {
          ASSERT_TRUE(target.process().kill().ok());
          stranger.emplace(must(Process::spawn(KVF_STRANGER, std::vector<std::string>{kind, port})));
          ASSERT_TRUE(stranger->read_line_with("ready", seconds(60)).ok());
        },
        [&] {
          stranger.reset();
          target = Target::start(target.successor());
        });
    EXPECT_EQ(lost.status.error().code, ErrorCode::peer_lost) << text_of(lost);

    const Stopwatch watch;
    const Outcome met = initiator_.engine().transfer(initiator_.request(target, GetParam().operation, seconds(1)));
    EXPECT_LT(watch.elapsed(), seconds(1) + kSlack);
    ASSERT_FALSE(met.status.ok());
    EXPECT_NE(met.status.error().code, ErrorCode::internal) << text_of(met);
    EXPECT_THAT(text_of(met), ::testing::HasSubstr("(" + target.address() + ") failed after"));
    EXPECT_EQ(met.bytes_done, 0u);
    ASSERT_TRUE(stranger->kill().ok());
    target = Target::start(target.successor());
    expect_works(initiator_, target);
  }
}

INSTANTIATE_TEST_SUITE_P(Tcp, StrangersOnThePort,
                         ::testing::Values(Case{"tcp", Operation::read}, Case{"tcp", Operation::write}), case_name);

// Waiting for a stopped peer costs no processor.
TEST_P(StoppedPeers, SleepsWhileAPeerIsStopped) {
  Target target = start_target();
  ASSERT_TRUE(target.process().stop().ok());
  double burnt = 1;
  for (int round = 0; round < 5 && burnt >= 0.3; ++round) {  // a processor's stand-still counts for who was on it
    const std::clock_t before = std::clock();
    const Outcome outcome =
        initiator_.engine().transfer(initiator_.request(target, GetParam().operation, milliseconds(3000)));
    EXPECT_FALSE(outcome.status.ok());
    burnt = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  }
  EXPECT_LT(burnt, 0.3);
  ASSERT_TRUE(target.process().resume().ok());
}

// Two transfers fail with the same cause: the second is not told only that "the session is over".
TEST_P(StoppedPeers, EveryTransferIsToldTheCause) {
  Target target = start_target();
  expect_works(initiator_, target);
  ASSERT_TRUE(target.process().stop().ok());
  std::vector<Transfer> all;
  for (int i = 0; i < 6; ++i)
    all.push_back(must(initiator_.engine().submit(initiator_.request(target, GetParam().operation, seconds(20)))));
  for (const Transfer& transfer : all) EXPECT_THAT(text_of(transfer.wait()), ::testing::HasSubstr("no heartbeat for"));
  ASSERT_TRUE(target.process().resume().ok());
}

// What holds of the fabrics that are told by the session what the peer does. By a device, whose connection ends beside
// it, a transfer that meets the end of one fails as any that is under way (docs/rdma.md), and one that is under way in
// a region may end before that is taken back.
class Sessions : public PeerFaults {};

// As after a stop of this process, or a link that has healed: the peer has given up on the session, and nobody here has
// looked at the connection since.
TEST_P(Sessions, ATransferBegunOnASessionThatThePeerHasEndedDialsAgain) {
  missed_heartbeats_ = 3;
  Target target = start_target();
  const Duration patience = seconds(20 * kSlower);
  const TransferRequest large = initiator_.request(target, GetParam().operation, patience);
  const TransferRequest small =
      initiator_.request(target.address(), target.region(), GetParam().operation, patience, uint64_t{256} << 10);
  std::promise<void> held;
  std::promise<void> release;
  bool over = true;
  for (int attempt = 0; attempt < 20 && over; ++attempt) {
    over = false;
    must(initiator_.engine().submit(large)).on_done([&, here = std::this_thread::get_id()](const Outcome&) {
      if (std::this_thread::get_id() == here) {  // over already: nothing would be held
        over = true;
        return;
      }
      held.set_value();
      release.get_future().wait();
    });
  }
  ASSERT_EQ(held.get_future().wait_for(patience), std::future_status::ready);
  EXPECT_TRUE(eventually([&] { return target.ask("describe").find("\"sessions\":0") != std::string::npos; }));
  initiator_.fill(0x77);
  // One that the calling thread could do alone on the same host, and one for the loop. A one-sided read needs the
  // session for nothing, and may be in its middle when the end is seen: that one fails as any.
  const bool with_large = GetParam().fabric != std::string("local") || GetParam().operation == Operation::write;
  const Transfer first = must(initiator_.engine().submit(small));
  std::optional<Transfer> second;
  if (with_large) second = must(initiator_.engine().submit(large));
  release.set_value();
  EXPECT_TRUE(first.wait().status.ok()) << text_of(first.wait());
  if (second) {
    EXPECT_TRUE(second->wait().status.ok()) << text_of(second->wait());
  }
  const auto theirs = target.memory(0, with_large ? bytes_ : uint64_t{256} << 10);
  EXPECT_TRUE(std::equal(theirs.begin(), theirs.end(), initiator_.memory().begin()));
  expect_works(initiator_, target);
}

// I4, owner's side: what unregister says holds, in the middle of a peer's transfer.
TEST_P(Sessions, UnregisteredInTheMiddle) {
  Target target = start_target();
  std::string said;
  const Outcome outcome = hit(
      target, seconds(20), [&] { said = target.ask("unregister 20000"); },
      [&] {
        EXPECT_EQ(said, "ok");
        const std::string answer = target.ask("register");
        ASSERT_TRUE(answer.starts_with("ok ")) << answer;
        target.set_region(std::stoull(answer.substr(3)));
      });
  EXPECT_EQ(said, "ok");
  ASSERT_FALSE(outcome.status.ok());
  EXPECT_EQ(outcome.status.error().code, ErrorCode::not_found) << text_of(outcome);
  const std::string answer = target.ask("register");
  ASSERT_TRUE(answer.starts_with("ok ")) << answer;
  target.set_region(std::stoull(answer.substr(3)));
  expect_works(initiator_, target);
}

// On one host a stopped owner does not hold up anybody.
INSTANTIATE_TEST_SUITE_P(Tcp, StoppedPeers,
                         ::testing::Values(Case{"tcp", Operation::read}, Case{"tcp", Operation::write},
                                           Case{"tcp", Operation::write, AuthMode::psk}),
                         case_name);
const auto kFabrics = ::testing::Values(
    Case{"tcp", Operation::read}, Case{"tcp", Operation::write}, Case{"tcp", Operation::write, AuthMode::psk},
    Case{"tcp", Operation::read, AuthMode::mtls}, Case{"local", Operation::read}, Case{"local", Operation::write});
INSTANTIATE_TEST_SUITE_P(Fabrics, PeerFaults, kFabrics, case_name);
INSTANTIATE_TEST_SUITE_P(Fabrics, Sessions, kFabrics, case_name);

// Where there is an RDMA device (test/rdma_vm).
std::vector<Case> cases_of_the_device() {
  std::vector<Case> out;
  for (const PluginCase& each : plugin_cases())
    for (const Operation operation : {Operation::read, Operation::write})
      if (has_rdma_device()) out.push_back({each.fabric, operation, AuthMode::open, each.transports});
  return out;
}
INSTANTIATE_TEST_SUITE_P(Device, PeerFaults, ::testing::ValuesIn(cases_of_the_device()), case_name);

}  // namespace
}  // namespace kvferry::test
