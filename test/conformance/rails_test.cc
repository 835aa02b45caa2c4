#include <gtest/gtest.h>

#include <regex>

#include "test/conformance/plugin_config.h"
#include "test/support/engines.h"
#include "test/support/eventually.h"
#include "test/support/peek.h"

// Several devices to one peer: what each of them carries, and that every byte arrives once.

namespace kvferry::test {
namespace {

using std::chrono::seconds;

constexpr size_t kBytes = size_t{12} << 20;

// Two addresses that reach each other: devices of a guest, or what loopback has on every machine.
std::vector<std::string> two_hosts() {
  if (const auto second = Environment::of_process().get("KVFERRY_TEST_SECOND_HOST")) return {rdma_host(), *second};
  return {"127.0.0.1", "127.0.0.2"};
}

// UCX's tcp knows one address of an interface.
std::vector<PluginCase> rail_cases() {
  std::vector<PluginCase> out = plugin_cases();
  if (!has_rdma_device()) std::erase_if(out, [](const PluginCase& c) { return std::string_view(c.fabric) == "ucx"; });
  return out;
}

class Rails : public ::testing::TestWithParam<PluginCase> {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_fabric(GetParam().fabric); !why.empty()) GTEST_SKIP() << why;
    if (has_rdma_device() && !Environment::of_process().get("KVFERRY_TEST_SECOND_HOST"))
      GTEST_SKIP() << "KVFERRY_TEST_SECOND_HOST names no second device";
  }
  void start(const std::vector<std::string>& our_hosts, const std::vector<std::string>& their_hosts) {
    owner_ = make(their_hosts);
    initiator_ = make(our_hosts);
    theirs_ = pattern(kBytes, 1);
    ours_.assign(kBytes, std::byte{0});
    their_region_ = must(owner_->register_memory(theirs_.data(), kBytes, MemoryKind::host, kRemoteReadWrite));
    our_region_ = must(initiator_->register_memory(ours_.data(), kBytes, MemoryKind::host, kPrivate));
  }
  static std::unique_ptr<Engine> make(const std::vector<std::string>& hosts) {
    EngineConfig config = plugin_config(GetParam());
    config.rdma_hosts = hosts;
    return must(Engine::create(std::move(config)));
  }
  Outcome move(Operation operation, uint64_t bytes, uint64_t piece) {
    TransferRequest asked;
    asked.peer = must(initiator_->peer(owner_->address()));
    asked.operation = operation;
    // The far side's order is the reverse: pieces do not merge.
    const uint64_t count = bytes / piece;
    for (uint64_t i = 0; i < count; ++i)
      asked.pairs.push_back({ours_.data() + i * piece, their_region_.id(), (count - 1 - i) * piece, piece});
    asked.timeout = seconds(60 * kSlower);
    return initiator_->transfer(std::move(asked));
  }
  void expect_the_same(uint64_t bytes, uint64_t piece) {
    const uint64_t count = bytes / piece;
    for (uint64_t i = 0; i < count; ++i)
      ASSERT_EQ(std::memcmp(ours_.data() + i * piece, theirs_.data() + (count - 1 - i) * piece, piece), 0) << i;
  }
  // A transfer of all bytes in one piece; returns when some have arrived, or it is over.
  Transfer begin(int round, bool wait) {
    const bool write = round % 2 == 0;
    const auto value = static_cast<std::byte>(100 + round);
    std::fill(ours_.begin(), ours_.end(), write ? value : std::byte{0});
    std::fill(theirs_.begin(), theirs_.end(), write ? std::byte{0} : value);
    TransferRequest asked;
    asked.peer = must(initiator_->peer(owner_->address()));
    asked.operation = write ? Operation::write : Operation::read;
    asked.pairs = {{ours_.data(), their_region_.id(), 0, kBytes}};
    asked.timeout = seconds(60 * kSlower);
    Transfer transfer = must(initiator_->submit(std::move(asked)));
    const std::byte* first = write ? theirs_.data() : ours_.data();
    if (wait) {
      EXPECT_TRUE(eventually([&] { return transfer.done() || peek(first) == value; }));
    }
    return transfer;
  }
  // What each rail has carried to the only peer.
  std::vector<uint64_t> moved() {
    const std::string text = initiator_->describe();
    std::vector<uint64_t> out;
    const std::regex number("([0-9]+) bytes moved");
    for (std::sregex_iterator found(text.begin(), text.end(), number); found != std::sregex_iterator(); ++found)
      out.push_back(std::stoull((*found)[1]));
    return out;
  }

  std::unique_ptr<Engine> owner_;
  std::unique_ptr<Engine> initiator_;
  std::vector<std::byte> theirs_;
  std::vector<std::byte> ours_;
  Region their_region_;
  Region our_region_;
};

TEST_P(Rails, ShareALargeTransfer) {
  start(two_hosts(), two_hosts());
  for (const uint64_t piece : {uint64_t{4096}, uint64_t{3} << 19, uint64_t{kBytes / 2}}) {
    std::fill(ours_.begin(), ours_.end(), std::byte{0});
    const Outcome read = move(Operation::read, kBytes, piece);
    ASSERT_TRUE(read.status.ok()) << read.status.error().to_string();
    EXPECT_EQ(read.bytes_done, kBytes);
    EXPECT_EQ(read.spans_done, kBytes / piece);
    EXPECT_EQ(read.fabric, GetParam().fabric);
    expect_the_same(kBytes, piece);
    const auto next = pattern(kBytes, piece);
    std::copy(next.begin(), next.end(), ours_.begin());
    const Outcome written = move(Operation::write, kBytes, piece);
    ASSERT_TRUE(written.status.ok()) << written.status.error().to_string();
    expect_the_same(kBytes, piece);
  }
  const auto carried = moved();
  ASSERT_EQ(carried.size(), 2u) << initiator_->describe();
  EXPECT_EQ(carried[0] + carried[1], 6 * kBytes);
  // Which is faster is the machine's affair; neither has next to nothing.
  EXPECT_GT(carried[0], kBytes / 2);
  EXPECT_GT(carried[1], kBytes / 2) << initiator_->describe();
}

TEST_P(Rails, LeaveASmallTransferToOne) {
  start(two_hosts(), two_hosts());
  const Outcome read = move(Operation::read, 65536, 4096);
  ASSERT_TRUE(read.status.ok()) << read.status.error().to_string();
  expect_the_same(65536, 4096);
  EXPECT_EQ(moved(), (std::vector<uint64_t>{65536, 0}));
}

TEST_P(Rails, AreAsManyAsBothSidesHave) {
  start(two_hosts(), {two_hosts()[0]});
  const Outcome read = move(Operation::read, kBytes, 1 << 20);
  ASSERT_TRUE(read.status.ok()) << read.status.error().to_string();
  EXPECT_EQ(moved(), (std::vector<uint64_t>{kBytes}));
  initiator_.reset();
  owner_.reset();
  start({two_hosts()[0]}, two_hosts());
  const Outcome again = move(Operation::read, kBytes, 1 << 20);
  ASSERT_TRUE(again.status.ok()) << again.status.error().to_string();
}

// I4, over all rails: memory comes back when nobody is under way to it, and what used it fails.
TEST_P(Rails, LetGoOfRegionsThatTheOwnerTakesBack) {
  start(two_hosts(), two_hosts());
  for (int round = 0; round < 5; ++round) {
    const Transfer transfer = begin(round, true);
    ASSERT_TRUE(their_region_.unregister(seconds(20 * kSlower)).ok());
    const Outcome outcome = transfer.wait();
    EXPECT_TRUE(outcome.status.ok() || outcome.status.error().code == ErrorCode::not_found)
        << outcome.status.error().to_string();
    their_region_ = must(owner_->register_memory(theirs_.data(), kBytes, MemoryKind::host, kRemoteReadWrite));
  }
  EXPECT_EQ(owner_->describe().find("; 1 peers cut off"), std::string::npos) << owner_->describe();
  const Outcome after = move(Operation::read, kBytes, 1 << 20);
  EXPECT_TRUE(after.status.ok()) << after.status.error().to_string();
}

TEST_P(Rails, AreQuietWhenATransferWasCancelled) {
  start(two_hosts(), two_hosts());
  for (int round = 0; round < 6; ++round) {
    const Transfer transfer = begin(round, round > 1);
    transfer.cancel();
    const Outcome outcome = transfer.wait();
    EXPECT_TRUE(outcome.status.ok() || outcome.status.error().code == ErrorCode::cancelled);
    if (outcome.remote != RemoteQuiet::quiet) continue;
    // What was written from or to is the caller's again.
    const auto ours = ours_;
    const auto theirs = theirs_;
    const Outcome small = move(Operation::read, 4096, 4096);
    ASSERT_TRUE(small.status.ok()) << small.status.error().to_string();
    EXPECT_EQ(std::memcmp(ours.data() + 4096, ours_.data() + 4096, kBytes - 4096), 0) << "written after its end";
    EXPECT_TRUE(theirs == theirs_) << "written after its end";
  }
}

INSTANTIATE_TEST_SUITE_P(All, Rails, ::testing::ValuesIn(rail_cases()),
                         [](const ::testing::TestParamInfo<PluginCase>& tested) {
                           return tested.param.fabric + name_of_transports(tested.param.transports);
                         });

TEST(RailHosts, ThatMakeNoSenseAreNamed) {
  const auto refused = [](std::vector<std::string> hosts) {
    EngineConfig config;
    config.rdma_hosts = std::move(hosts);
    return why_not(std::move(config));
  };
  EXPECT_NE(refused({"10.0.0.1", "10.0.0.1"}).find("names 10.0.0.1 twice"), std::string::npos);
  EXPECT_NE(refused({"mlx5_0"}).find("\"mlx5_0\" is no numeric address"), std::string::npos);
  EXPECT_NE(refused(std::vector<std::string>(9, "::1")).find("more than 8"), std::string::npos);
}

}  // namespace
}  // namespace kvferry::test
