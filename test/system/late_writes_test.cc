#include <random>
#include <thread>

#include "common/config.h"
#include "test/system/faults.h"

// I4: no byte of a transfer that was given up lands after the call returned, but for the one slice of 256 KiB that may
// have been on its way into the far side's memory. Peers of this library fail exactly this: a write to a stopped
// process times out, the memory is given to somebody else, the process goes on and the old bytes land.
//
// A device writes into a stopped process too: there the same holds of what is under way when the call returns.
//
// Each line of defence alone: mutants/, and cut_late_writes_test.cc for those that need a network which loses things.

namespace kvferry::test {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr size_t kBytes = size_t{8} << 20;
// Posting to a device that is software moves the bytes: a read of one window would have ended before it could be
// stopped.
constexpr size_t kReadBytesByDevice = size_t{22} << 20;
constexpr size_t kSlice = size_t{256} << 10;
constexpr std::byte kTheirs{7};
constexpr uint8_t kPoison = 99;  // what a caller may write into memory that is its own again

size_t differing(const std::vector<std::byte>& before, const std::vector<std::byte>& after) {
  if (std::memcmp(before.data(), after.data(), before.size()) == 0) return 0;
  size_t count = 0;
  for (size_t i = 0; i < before.size(); ++i) count += before[i] != after[i];
  return count;
}

bool any_of(const std::vector<std::byte>& bytes, std::byte value) {
  return std::memchr(bytes.data(), static_cast<int>(value), bytes.size()) != nullptr;
}

// How a transfer is under way when its target is stopped.
struct Way {
  const char* name;
  Operation operation;
  bool session_is_full;  // what tells the target by the session waits behind megabytes: the lane's reset must do
  AuthMode auth = AuthMode::open;
  PluginCase device{"", ""};  // what moves the bytes, where it is not tcp
};

void PrintTo(const Way& way, std::ostream* out) {
  *out << way.name;
}

// Stops the target at a random moment of a transfer, gives the transfer up, and compares the memory that it wrote to
// then and after the target went on.
class StoppedTargets : public ::testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    Target::Options options;
    options.bytes = bytes();
    options.environment = environment_of(auth_of(GetParam().auth));
    if (by_device()) {
      options.fabric = GetParam().device.fabric;
      options.heartbeat_ms = 500 * plugin_slower();
      options.environment[transports_variable(options.fabric)] = GetParam().device.transports;
      options.environment["KVFERRY_RDMA_HOST"] = rdma_host();
    }
    target_.emplace(Target::start(options));
    ASSERT_EQ(target_->ask("fill 7"), "ok");
    // The median: one of them may have met a machine that stood still, and no stop would then come in time.
    std::vector<Duration> times;
    for (int i = 0; i < 5; ++i) times.push_back(time_of_one());
    std::sort(times.begin(), times.end());
    typical_ = times[2];
  }
  static bool is_write() { return GetParam().operation == Operation::write; }
  static bool by_device() { return *GetParam().device.fabric != '\0'; }
  static size_t bytes() { return by_device() && !is_write() ? kReadBytesByDevice : kBytes; }

  // Every other transfer ends by its deadline, the others by a cancel.
  void round(bool cancels) {
    if (by_device()) connect_again();
    if (HasFatalFailure()) return;
    next_value();
    initiator_.fill(value_);
    const Duration stop_after(static_cast<int64_t>(random_() % static_cast<uint64_t>(typical_.count())));
    const Duration until_deadline = milliseconds(GetParam().session_is_full ? 60 : by_device() ? 1 : 10);
    const Duration timeout = cancels ? Duration(seconds(30)) : stop_after + until_deadline;
    const TimePoint began = clock_.now();
    const Transfer transfer =
        must(initiator_.engine().submit(initiator_.request(*target_, GetParam().operation, timeout)));
    while (clock_.now() < began + stop_after && !transfer.done()) std::this_thread::yield();
    ASSERT_TRUE(target_->process().stop().ok());
    const std::vector<Transfer> burst = GetParam().session_is_full ? fill_session() : std::vector<Transfer>();
    std::vector<std::byte> at_return;
    if (is_write() && !by_device()) at_return = written_memory();  // that of a stopped target stays as it is
    if (cancels)
      transfer.cancel();  // from here on, not from the outcome on, the memory may be given to somebody else
    else
      static_cast<void>(transfer.wait());
    // A device reads it without us: what it still takes from there would be seen at the target.
    if (is_write() && by_device()) initiator_.fill(kPoison);
    if (at_return.empty()) at_return = written_memory();
    ASSERT_TRUE(target_->process().resume().ok());
    settle();
    const std::vector<std::byte> later = written_memory();
    const Outcome outcome = transfer.wait();
    for (const Transfer& one : burst) static_cast<void>(one.wait());
    static_cast<void>(target_->ask("notifications"));
    judge(outcome, at_return, later);
  }

  int hits() const { return hits_; }
  size_t worst() const { return worst_; }

 private:
  void next_value() {
    do ++value_;
    while (std::byte{value_} == kTheirs || value_ == kPoison);
  }
  std::vector<std::byte> written_memory() { return is_write() ? target_->memory() : initiator_.memory(); }

  void judge(const Outcome& outcome, const std::vector<std::byte>& at_return, const std::vector<std::byte>& later) {
    ASSERT_EQ(at_return.size(), later.size());
    const size_t late = differing(at_return, later);
    const bool is_over = outcome.status.ok() || !is_write() || by_device();
    EXPECT_FALSE(is_write() && any_of(later, std::byte{kPoison})) << "of memory that was given back";
    ASSERT_LE(late, is_over ? 0 : kSlice) << text_of(outcome) << " (round with value " << int{value_} << ")";
    worst_ = std::max(worst_, late);
    const bool began = any_of(at_return, is_write() ? std::byte{value_} : kTheirs);
    // By a device they may all be there before anybody looks at the time.
    hits_ += !outcome.status.ok() && began && (by_device() || outcome.bytes_done < bytes());
  }

  // A frame on the session is answered after everything that the target's loop finds in its sockets.
  void settle() {
    const PeerRef peer = must(initiator_.engine().peer(target_->address()));
    ASSERT_TRUE(eventually([&] {
      return must(initiator_.engine().notify(peer, {"n", ""}, seconds(5))).wait().status.ok();
    }));
  }
  // A transfer that was given up has cost its connection, and the next would spend its time on another.
  void connect_again() {
    const Outcome outcome = initiator_.engine().transfer(
        initiator_.request(target_->address(), target_->region(), GetParam().operation, seconds(30), 256));
    ASSERT_TRUE(outcome.status.ok()) << text_of(outcome);
  }
  // More than sockets hold.
  std::vector<Transfer> fill_session() {
    const PeerRef peer = must(initiator_.engine().peer(target_->address()));
    const std::string much(kMaxNotificationBytes - 1, 'n');
    std::vector<Transfer> all;
    for (int i = 0; i < 24; ++i) all.push_back(must(initiator_.engine().notify(peer, {"n", much}, seconds(30))));
    return all;
  }
  Duration time_of_one() {
    const TimePoint began = clock_.now();
    const Outcome outcome =
        initiator_.engine().transfer(initiator_.request(*target_, GetParam().operation, seconds(30)));
    EXPECT_TRUE(outcome.status.ok()) << text_of(outcome);
    return clock_.now() - began;
  }

  const SystemClock clock_;
  std::mt19937_64 random_{7};
  Initiator initiator_{by_device() ? GetParam().device.fabric : "tcp",
                       bytes(),
                       auth_of(GetParam().auth),
                       milliseconds(200 * plugin_slower()),
                       kPatient,
                       GetParam().device.transports};
  std::optional<Target> target_;
  Duration typical_{0};
  uint8_t value_ = 0;
  int hits_ = 0;
  size_t worst_ = 0;
};

// 100 stops each; KVFERRY_TEST_STOPS asks for another number (docs/faults.md).
TEST_P(StoppedTargets, ThatGoOnWriteNothingThatWasGivenUp) {
  const auto stops = Environment::of_process().integer("KVFERRY_TEST_STOPS", 100, 1, 100000);
  ASSERT_TRUE(stops.ok());
  int64_t rounds = 0;
  for (; (rounds < *stops || (hits() <= *stops / 10 && rounds < 3 * *stops)) && !HasFatalFailure(); ++rounds)
    round(rounds % 2 == 0);
  RecordProperty("stops_in_the_middle", hits());
  RecordProperty("most_bytes_late", static_cast<int>(worst()));
  std::printf("%s: %d of %d stops in the middle; at most %zu bytes landed after the return\n", GetParam().name, hits(),
              static_cast<int>(rounds), worst());
  EXPECT_GT(hits(), *stops / 10);
}

INSTANTIATE_TEST_SUITE_P(
    Tcp, StoppedTargets,
    ::testing::Values(Way{"write", Operation::write, false}, Way{"write_behind_a_full_session", Operation::write, true},
                      Way{"read", Operation::read, false},
                      Way{"write_over_tls", Operation::write, false, AuthMode::psk},
                      Way{"write_over_tls_behind_a_full_session", Operation::write, true, AuthMode::psk}),
    [](const auto& one) { return std::string(one.param.name); });

// Where there is an RDMA device (test/rdma_vm).
std::vector<Way> ways_of_the_device() {
  if (!has_rdma_device()) return {};
  return {Way{"write", Operation::write, false, AuthMode::open, plugin_cases()[0]},
          Way{"read", Operation::read, false, AuthMode::open, plugin_cases()[0]}};
}
INSTANTIATE_TEST_SUITE_P(Device, StoppedTargets, ::testing::ValuesIn(ways_of_the_device()),
                         [](const auto& one) { return std::string(one.param.name); });

}  // namespace
}  // namespace kvferry::test
