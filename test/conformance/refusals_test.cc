#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

#include "test/conformance/conformance.h"
#include "test/support/free_port.h"
#include "test/support/stopwatch.h"

// What must not work: each is an error that says why, never a crash, and moves no byte.

namespace kvferry::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class Refusals : public Conformance {
 protected:
  void SetUp() override {
    Conformance::SetUp();
    if (IsSkipped()) return;
    make_memory(10000);
  }
};

TEST_P(Refusals, NoPairsAndEmptyPairs) {
  for (const Operation operation : kBoth) {
    check_refused(request(operation, {}), ErrorCode::invalid_argument, {"at least one pair"});
    check_refused(request(operation, {pair(0, 0, 10), pair(0, 0, 0)}), ErrorCode::invalid_argument, {"length zero"});
  }
}

TEST_P(Refusals, NoPeer) {
  TransferRequest asked = request(Operation::read, {pair(0, 0, 10)});
  asked.peer = PeerRef();
  check_refused(asked, ErrorCode::invalid_argument, {"no peer"});
  EXPECT_EQ(initiator_->notify(PeerRef(), {"a", "b"}).error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(initiator_->notify_and_wait(PeerRef(), {"a", "b"}).status.error().code, ErrorCode::invalid_argument);
}

TEST_P(Refusals, APeerOfAnotherEngine) {
  TransferRequest asked = request(Operation::read, {pair(0, 0, 10)});
  const auto third = make_engine("third");
  static_cast<void>(must(third->peer("127.0.0.1:1")));
  asked.peer = must(third->peer(owner_->address()));
  check_refused(asked, ErrorCode::invalid_argument, {"another engine"});
  EXPECT_EQ(initiator_->notify(asked.peer, {"a", "b"}).error().code, ErrorCode::invalid_argument);
}

TEST_P(Refusals, OutOfTheRegion) {
  for (const Operation operation : kBoth) {
    check_refused(request(operation, {pair(0, 9000, 1001)}), ErrorCode::invalid_argument, {"outside of region"});
    check_refused(request(operation, {pair(0, 10000, 1)}), ErrorCode::invalid_argument, {"outside of region"});
    check_refused(request(operation, {pair(0, UINT64_MAX - 5, 10)}), ErrorCode::invalid_argument, {"outside"});
    // The first pair alone would be fine: nothing of it may move.
    check_refused(request(operation, {pair(0, 100, 100), pair(200, 9999, 2)}), ErrorCode::invalid_argument,
                  {"outside"});
  }
}

TEST_P(Refusals, WrongPermission) {
  Buffer memory = make_buffer(GetParam().owner, 3000);
  const Region readable = must(owner_->register_memory(memory.base(), 1000, memory.kind(), kRemoteRead));
  const Region writable = must(owner_->register_memory(memory.base() + 1000, 1000, memory.kind(), kRemoteWrite));
  const Region closed = must(owner_->register_memory(memory.base() + 2000, 1000, memory.kind(), kPrivate));
  const auto of = [&](const Region& region) { return Pair{local_->base(), region.id(), 0, 100}; };
  check_refused(request(Operation::write, {of(readable)}), ErrorCode::permission_denied, {"not open for remote write"});
  check_refused(request(Operation::read, {of(writable)}), ErrorCode::permission_denied, {"not open for remote read"});
  for (const Operation operation : kBoth) {
    const Outcome outcome = run(operation, {of(closed)});
    ASSERT_FALSE(outcome.status.ok());
    EXPECT_NE(outcome.status.error().code, ErrorCode::internal) << outcome.status.error().to_string();
  }
  EXPECT_TRUE(run(Operation::read, {of(readable)}).status.ok());
  EXPECT_TRUE(run(Operation::write, {of(writable)}).status.ok());
}

TEST_P(Refusals, AnUnknownRegion) {
  for (const Operation operation : kBoth)
    check_refused(request(operation, {{local_->base(), remote_region_.id() + 77, 0, 10}}), ErrorCode::not_found,
                  {"no region", "owner"});
}

TEST_P(Refusals, LocalMemoryThatIsNotRegistered) {
  Buffer stray = make_buffer(GetParam().initiator, 5000);
  for (const Operation operation : kBoth) {
    check_refused(request(operation, {{stray.base(), remote_region_.id(), 0, 10}}), ErrorCode::invalid_argument,
                  {"not registered"});
    check_refused(request(operation, {pair(9000, 0, 2000)}), ErrorCode::invalid_argument, {"not registered"});
    check_refused(request(operation, {{nullptr, remote_region_.id(), 0, 10}}), ErrorCode::invalid_argument,
                  {"not registered"});
    check_refused(request(operation, {pair(1, 0, UINT64_MAX)}), ErrorCode::invalid_argument, {"not registered"});
  }
}

TEST_P(Refusals, LocalMemoryOfTwoKindsInOneTransfer) {
  const MemoryKind other = GetParam().initiator == MemoryKind::host ? device_->kind() : MemoryKind::host;
  Buffer mixed = make_buffer(other, 1000);
  const Region region = must(initiator_->register_memory(mixed.base(), 1000, other, kPrivate));
  check_refused(request(Operation::read, {pair(0, 0, 10), {mixed.base(), remote_region_.id(), 0, 10}}),
                ErrorCode::unsupported, {"several memory kinds"});
}

TEST_P(Refusals, RegistrationsThatMakeNoSense) {
  std::vector<std::byte> bytes(1000);
  const auto code = [&](void* base, uint64_t length, MemoryKind kind, uint32_t permissions) {
    auto region = initiator_->register_memory(base, length, kind, permissions);
    return region.ok() ? ErrorCode() : region.error().code;
  };
  EXPECT_EQ(code(bytes.data(), 0, MemoryKind::host, kPrivate), ErrorCode::invalid_argument);
  EXPECT_EQ(code(nullptr, 10, MemoryKind::host, kPrivate), ErrorCode::invalid_argument);
  EXPECT_EQ(code(bytes.data(), 10, MemoryKind::host, 4), ErrorCode::invalid_argument);
  EXPECT_EQ(code(bytes.data(), 10, MemoryKind::cuda, kPrivate),
            device_->kind() == MemoryKind::cuda ? ErrorCode::invalid_argument : ErrorCode::unsupported);
  EXPECT_EQ(code(bytes.data(), UINT64_MAX - 100, MemoryKind::host, kPrivate), ErrorCode::invalid_argument);
  EXPECT_EQ(code(local_->base() + 10, 10, local_->kind(), kPrivate), ErrorCode::already_exists);
}

TEST_P(Refusals, RegistersAllRangesOrNone) {
  Buffer one = make_buffer(GetParam().initiator, 2000);
  const std::vector<std::pair<void*, uint64_t>> ranges = {
      {one.base(), 1000}, {one.base() + 1000, 1000}, {one.base() + 500, 10}};
  auto refused = initiator_->register_memory(ranges, one.kind(), kPrivate);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::already_exists);
  EXPECT_TRUE(initiator_->register_memory(one.base(), 2000, one.kind(), kPrivate).ok());
}

TEST_P(Refusals, AddressesThatAreNone) {
  for (const char* text : {"", "nowhere", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", ":7100", "::1:7100"}) {
    const auto peer = initiator_->peer(text);
    ASSERT_FALSE(peer.ok()) << text;
    EXPECT_EQ(peer.error().code, ErrorCode::invalid_argument) << text;
  }
}

TEST_P(Refusals, NobodyListensThere) {
  const std::string address = free_address();
  TransferRequest asked = request(Operation::read, {pair(0, 0, 10)});
  asked.peer = must(initiator_->peer(address));
  const Stopwatch watch;
  check_refused(asked, ErrorCode::unavailable, {address, "failed after "});
  EXPECT_LT(watch.elapsed(), seconds(1) * kSlower);
  EXPECT_FALSE(asked.peer.connect(seconds(20)).ok());
}

// ---- limits (I6): each says its name

TEST_P(Refusals, MorePairsThanMaxPairs) {
  remake_initiator([](EngineConfig& config) { config.max_pairs = 10; });
  make_memory(10000);
  std::vector<Pair> pairs;
  for (uint64_t i = 0; i < 11; ++i) pairs.push_back(pair(i * 20, i * 20, 10));
  check_refused(request(Operation::read, pairs), ErrorCode::resource_exhausted, {"max_pairs (10)"});
  pairs.pop_back();
  check(Operation::read, pairs);
}

TEST_P(Refusals, MoreRegionsThanMaxRegions) {
  remake_initiator([](EngineConfig& config) { config.max_regions = 3; });
  make_memory(10000);
  Buffer more = make_buffer(GetParam().initiator, 4000);
  std::vector<Region> regions;
  for (size_t i = 0; i < 2; ++i)
    regions.push_back(must(initiator_->register_memory(more.base() + i * 1000, 1000, more.kind(), kPrivate)));
  const auto refused = initiator_->register_memory(more.base() + 3000, 1000, more.kind(), kPrivate);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::resource_exhausted);
  EXPECT_NE(refused.error().to_string().find("max_regions (3)"), std::string::npos);
  ASSERT_TRUE(regions.back().unregister().ok());
  EXPECT_TRUE(initiator_->register_memory(more.base() + 3000, 1000, more.kind(), kPrivate).ok());
}

// A full table stays usable while its regions are replaced.
TEST_P(Refusals, APeerWithAsManyRegionsAsAllowedMayReplaceThem) {
  const auto four = [](EngineConfig& config) { config.max_regions = 4; };
  remake_initiator(four);
  remake_owner(four);
  make_memory(10000);
  Buffer more = make_buffer(GetParam().owner, 4000);
  std::vector<Region> regions;
  for (size_t i = 0; i < 3; ++i)
    regions.push_back(must(owner_->register_memory(more.base() + i * 1000, 1000, more.kind(), kRemoteRead)));
  check(Operation::read, {pair(0, 0, 100)});
  for (int round = 0; round < 30; ++round) {
    regions.erase(regions.begin());
    const size_t place = static_cast<size_t>(round % 3) * 1000;
    regions.push_back(must(owner_->register_memory(more.base() + place, 1000, more.kind(), kRemoteRead)));
    const Outcome outcome = run(Operation::read, {{local_->base(), regions.back().id(), 0, 1000}});
    ASSERT_TRUE(outcome.status.ok()) << round << ": " << outcome.status.error().to_string();
  }
}

TEST_P(Refusals, MoreTransfersThanMaxTransfers) {
  remake_initiator([](EngineConfig& config) { config.max_transfers = 4; });
  make_memory(10000);
  // A peer that never answers holds them in flight.
  const PeerRef silent = must(initiator_->peer("127.0.0.1:1"));
  std::vector<Transfer> held;
  ErrorCode code{};
  std::string text;
  for (int i = 0; i < 20000 && text.empty(); ++i) {
    auto transfer = initiator_->notify(peer_, {"n", std::string(100000, 'x')});
    if (transfer.ok()) {
      held.push_back(*transfer);
    } else {
      code = transfer.error().code;
      text = transfer.error().to_string();
    }
  }
  EXPECT_EQ(code, ErrorCode::resource_exhausted);
  EXPECT_NE(text.find("max_transfers (4)"), std::string::npos) << text;
  for (const Transfer& one : held) static_cast<void>(one.wait());
  check(Operation::read, {pair(0, 0, 100)});
}

TEST_P(Refusals, MoreNotificationsThanTheReceiverHolds) {
  remake_owner([](EngineConfig& config) { config.max_notifications = 3; });
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(must(initiator_->notify(peer_, {"n", "x"})).wait().status.ok());
  const Outcome fourth = initiator_->notify_and_wait(peer_, {"n", "x"});
  ASSERT_FALSE(fourth.status.ok());
  EXPECT_EQ(fourth.status.error().code, ErrorCode::resource_exhausted);
  EXPECT_NE(fourth.status.error().to_string().find("queue is full"), std::string::npos);
  EXPECT_EQ(owner_->notifications().size(), 3u);
  EXPECT_TRUE(initiator_->notify_and_wait(peer_, {"n", "x"}).status.ok());
}

TEST_P(Refusals, MoreNotificationBytesThanTheReceiverHolds) {
  remake_owner([](EngineConfig& config) { config.max_notification_bytes = 10000; });
  ASSERT_TRUE(must(initiator_->notify(peer_, {"n", std::string(6000, 'a')})).wait().status.ok());
  EXPECT_FALSE(must(initiator_->notify(peer_, {"n", std::string(6000, 'a')})).wait().status.ok());
  EXPECT_EQ(owner_->notifications().size(), 1u);
}

TEST_P(Refusals, ANotificationThatIsTooLong) {
  const auto refused = initiator_->notify(peer_, {"n", std::string(kMaxNotificationBytes, 'x')});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::invalid_argument);
  EXPECT_TRUE(must(initiator_->notify(peer_, {"n", std::string(kMaxNotificationBytes - 1, 'x')})).wait().status.ok());
}

TEST_P(Refusals, MorePeersThanMaxPeers) {
  remake_initiator([](EngineConfig& config) { config.max_peers = 2; });
  EXPECT_TRUE(initiator_->peer("127.0.0.1:2").ok());
  EXPECT_TRUE(initiator_->peer("127.0.0.1:2").ok());
  const auto refused = initiator_->peer("127.0.0.1:3");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::resource_exhausted);
  EXPECT_NE(refused.error().to_string().find("max_peers (2)"), std::string::npos);
}

// ---- fork

// Runs `ask` in a forked child and returns what it says.
std::string in_child(const std::function<std::string()>& ask) {
  int ends[2];
  KVF_CHECK(::pipe(ends) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);
    const std::string answer = ask();
    [[maybe_unused]] const ssize_t ignored = ::write(ends[1], answer.data(), answer.size());
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string answer;
  char buffer[4096];
  for (ssize_t count = 0; (count = ::read(ends[0], buffer, sizeof buffer)) > 0;)
    answer.append(buffer, static_cast<size_t>(count));
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? answer : "the child died";
}

TEST_P(Refusals, EveryCallInAForkedChild) {
  check(Operation::read, {pair(0, 0, 100)});
  ASSERT_TRUE(initiator_->completion_fd().ok());
  const Transfer done = must(initiator_->submit(request(Operation::read, {pair(0, 0, 10)})));
  ASSERT_TRUE(done.wait().status.ok());
  const std::string complaints = in_child([&] {
    std::string wrong;
    const auto refused = [&](const char* call, const Status& status) {
      if (status.ok() || status.error().code != ErrorCode::unsupported ||
          status.error().to_string().find("fork()") == std::string::npos)
        wrong += std::string(call) + " is not refused; ";
    };
    const auto status_of = [](const auto& result) { return result.ok() ? Status() : Status(result.error()); };
    std::vector<std::byte> bytes(100);
    refused("register", status_of(initiator_->register_memory(bytes.data(), 100, MemoryKind::host, kPrivate)));
    refused("peer", status_of(initiator_->peer("127.0.0.1:1")));
    refused("submit", status_of(initiator_->submit(request(Operation::read, {pair(0, 0, 10)}))));
    refused("transfer", run(Operation::read, {pair(0, 0, 10)}).status);
    refused("notify", status_of(initiator_->notify(peer_, {"a", "b"})));
    refused("connect", peer_.connect(seconds(1)));
    refused("completion_fd", status_of(initiator_->completion_fd()));
    if (!initiator_->take_completed().empty()) wrong += "take_completed takes the parent's; ";
    if (!initiator_->notifications().empty()) wrong += "notifications takes the parent's; ";
    done.cancel();
    refused("unregister", local_region_.unregister());
    initiator_.reset();
    return wrong;
  });
  EXPECT_EQ(complaints, "");
  // The parent's engine is as it was.
  EXPECT_EQ(initiator_->take_completed().size(), 1u);
  check(Operation::write, {pair(0, 0, 10000)});
}

INSTANTIATE_TEST_SUITE_P(Fabrics, Refusals, kAllCases, case_name);

}  // namespace
}  // namespace kvferry::test
