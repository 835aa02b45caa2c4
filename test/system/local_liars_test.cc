#include <gmock/gmock.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "engine/fabric/local/host.h"
#include "engine/fabric/local/process.h"
#include "engine/memory/gate.h"
#include "engine/session/messages.h"
#include "test/support/engines.h"
#include "test/support/raw_peer.h"

// The fabric local moves bytes of whatever process a peer names: what keeps a peer from naming another than itself is
// the word that only the two ends of their session know (proto/control.proto, LocalAttach).

namespace kvferry::test {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

constexpr uint64_t kRegion = 77;
constexpr size_t kBytes = 4096;
constexpr std::byte kOurs{'o'};
constexpr std::byte kTheirs{'t'};  // the bystander's alone

// Another process of this user, that knows nothing of anybody. All that an attach names exists in it, as if it were an
// engine: words in force, slots, and memory at `base()`.
class Bystander {
 public:
  Bystander() : memory_(kBytes, kTheirs), words_(must(GateWords::create())), slots_fd_(must(GateSlots::create_fd())) {
    region_word_ = must(words_->open(kRegion));
    session_word_ = must(words_->open(kSession));
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      while (true) ::pause();
    }
    memory_.assign(kBytes, kOurs);  // of this process; the fork has its own
  }
  ~Bystander() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Bystander(const Bystander&) = delete;
  Bystander& operator=(const Bystander&) = delete;

  uint32_t pid() const { return static_cast<uint32_t>(pid_); }
  uint64_t base() const { return reinterpret_cast<uint64_t>(memory_.data()); }
  uint32_t slots_fd() const { return static_cast<uint32_t>(slots_fd_.get()); }

  proto::Frame region() const {
    proto::Frame frame;
    proto::Region& region = *frame.mutable_regions()->add_added();
    region.set_id(kRegion);
    region.set_permissions(kRemoteReadWrite);
    region.set_base(base());
    region.set_length(kBytes);
    region.set_word(region_word_);
    frame.mutable_regions()->set_version(1);
    frame.mutable_regions()->set_complete(true);
    frame.mutable_regions()->set_reset(true);
    return frame;
  }
  proto::Frame attached(uint64_t proof_address) const {
    proto::Frame frame;
    frame.mutable_local_attached()->set_proof_address(proof_address);
    frame.mutable_local_attached()->set_words_fd(static_cast<uint32_t>(words_->fd()));
    frame.mutable_local_attached()->set_session_word(session_word_);
    frame.mutable_local_attached()->set_session_generation(kSession);
    return frame;
  }

 private:
  static constexpr uint64_t kSession = 99;
  std::vector<std::byte> memory_;
  std::unique_ptr<GateWords> words_;
  UniqueFd slots_fd_;
  WordIndex region_word_ = 0;
  WordIndex session_word_ = 0;
  pid_t pid_ = -1;
};

proto::Host host_at(uint32_t pid) {
  HostIdentity host = this_host();
  host.pid = pid;
  return host_to_proto(host);
}

EngineConfig local_only(const std::string& name) {
  EngineConfig config;
  config.engine_id = name;
  config.fabrics = {"local"};
  config.missed_heartbeats = 60;  // liars send none
  config.logger = make_null_logger();
  return config;
}

struct Lie {
  uint32_t pid = 0;
  uint64_t proof_address = 0;  // 0: that of a word which holds the initiator's challenge
};

class LocalLiars : public ::testing::Test {
 protected:
  // Plays an owner that is at `lie.pid`, and moves `kBytes` between `ours_` and the region that it tells of.
  Outcome transfer_with_owner(const Lie& lie, Operation operation) {
    RawListener listener;
    uint64_t proof = 0;
    std::thread owner([&] {
      RawConnection connection(listener.accept());
      connection.receive(Preface::kBytes);
      connection.receive_frame(proto::Frame::kHello);
      proto::Frame frame;
      proto::Welcome& welcome = *frame.mutable_welcome();
      welcome.set_version(1);
      welcome.set_engine_id("liar");
      welcome.set_incarnation(3);
      welcome.set_session_id(5);
      *welcome.mutable_host() = host_at(lie.pid);
      welcome.add_fabrics()->set_name("local");
      connection.send_frame(frame);
      connection.send_frame(bystander_.region());
      proof = connection.receive_frame(proto::Frame::kLocalAttach).local_attach().challenge();
      const auto shown = lie.proof_address != 0 ? lie.proof_address : reinterpret_cast<uint64_t>(&proof);
      connection.send_frame(bystander_.attached(shown));
      static_cast<void>(connection.receive_frame(proto::Frame::kRefusal));  // until the initiator leaves
    });
    Outcome outcome = transfer_with(listener.address(), operation);
    owner.join();
    return outcome;
  }
  // What an owner answers to who attaches as `lie`. `proof` is of this process, for who does not lie.
  proto::LocalAttached attach_to(Engine& owner, const Lie& lie) {
    RawConnection connection = RawConnection::dial(owner.address());
    proto::Frame greeting = hello();
    *greeting.mutable_hello()->mutable_host() = host_at(lie.pid);
    EXPECT_TRUE(connection.send(encode_session_preface() + RawConnection::encode(greeting)));
    const uint64_t proof = connection.receive_frame(proto::Frame::kWelcome).welcome().local_challenge();
    proto::Frame attach;
    attach.mutable_local_attach()->set_proof_address(lie.proof_address != 0 ? lie.proof_address
                                                                            : reinterpret_cast<uint64_t>(&proof));
    attach.mutable_local_attach()->set_challenge(1);
    attach.mutable_local_attach()->set_slots_fd(bystander_.slots_fd());
    EXPECT_TRUE(connection.send_frame(attach));
    return connection.receive_frame(proto::Frame::kLocalAttached).local_attached();
  }

  Outcome transfer_with(const std::string& address, Operation operation) {
    const auto initiator = must(Engine::create(local_only("initiator")));
    const Region region = must(initiator->register_memory(ours_.data(), kBytes, MemoryKind::host, kPrivate));
    TransferRequest request;
    request.peer = must(initiator->peer(address));
    request.operation = operation;
    request.pairs = {{ours_.data(), kRegion, 0, kBytes}};
    request.timeout = seconds(20);
    return initiator->transfer(request);
  }

  const uint32_t self_ = static_cast<uint32_t>(::getpid());
  Bystander bystander_;
  std::vector<std::byte> ours_ = std::vector<std::byte>(kBytes);
};

// Those below fail for the lie alone.
TEST_F(LocalLiars, WhoTellsTheTruthIsServed) {
  const Outcome outcome = transfer_with_owner({self_, 0}, Operation::read);
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
  EXPECT_TRUE(ours_ == std::vector<std::byte>(kBytes, kOurs));
  const auto owner = must(Engine::create(local_only("owner")));
  EXPECT_EQ(attach_to(*owner, {self_, 0}).code(), 0u);
}

TEST_F(LocalLiars, AnOwnerThatNamesAnotherProcessIsGivenNoneOfItsBytes) {
  const uint64_t unmapped = 16;
  for (const Lie& lie : {Lie{bystander_.pid(), bystander_.base()}, Lie{bystander_.pid(), unmapped}}) {
    const Outcome outcome = transfer_with_owner(lie, Operation::read);
    EXPECT_FALSE(outcome.status.ok());
    EXPECT_TRUE(ours_ == std::vector<std::byte>(kBytes)) << "bytes of the process that it named";
    if (outcome.status.ok() || lie.proof_address == unmapped) continue;
    EXPECT_THAT(outcome.status.error().to_string(), HasSubstr("is not the one at the other end"));
  }
}

TEST_F(LocalLiars, AnOwnerThatNamesAnotherProcessCannotHaveItWrittenTo) {
  ours_.assign(kBytes, std::byte{'x'});
  EXPECT_FALSE(transfer_with_owner({bystander_.pid(), bystander_.base()}, Operation::write).status.ok());
  const auto victim = must(local::Process::open(bystander_.pid()));
  constexpr uint64_t kUntouched = 0x0101010101010101 * static_cast<uint64_t>(kTheirs);
  EXPECT_EQ(must(victim.read_word(bystander_.base())), kUntouched);
}

TEST_F(LocalLiars, AnOwnerWhoseWordIsAnotherIsNotServed) {
  const Outcome outcome = transfer_with_owner({self_, bystander_.base()}, Operation::read);
  ASSERT_FALSE(outcome.status.ok());
  EXPECT_THAT(outcome.status.error().to_string(), HasSubstr("is not the one at the other end"));
  EXPECT_TRUE(ours_ == std::vector<std::byte>(kBytes));
}

TEST_F(LocalLiars, AnInitiatorThatNamesAnotherProcessIsToldNothing) {
  const auto owner = must(Engine::create(local_only("owner")));
  for (const Lie& lie : {Lie{bystander_.pid(), bystander_.base()}, Lie{self_, bystander_.base()}}) {
    const proto::LocalAttached answer = attach_to(*owner, lie);
    EXPECT_EQ(answer.code(), static_cast<uint32_t>(ErrorCode::permission_denied)) << answer.message();
    EXPECT_THAT(answer.message(), HasSubstr("is not the one at the other end"));
    EXPECT_EQ(answer.words_fd(), 0u);
    EXPECT_EQ(answer.proof_address(), 0u);
  }
}

}  // namespace
}  // namespace kvferry::test
