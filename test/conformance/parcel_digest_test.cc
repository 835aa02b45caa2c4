#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "common/fd.h"
#include "engine/io/address.h"
#include "test/conformance/parcel_rank.h"
#include "test/support/eventually.h"
#include "test/support/peek.h"
#include "test/support/sanitized.h"

// What a digest catches: bytes that change on their way, and bytes that change at the owner while they are read.

namespace kvferry::test {
namespace {

constexpr auto kMark = std::byte{0xA5};

// Stands between reader and owner and turns one bit of every long run of kMark that the owner sends.
class FlippingRelay {
 public:
  explicit FlippingRelay(const std::string& owner) : owner_(*parse_address(owner, false)) {
    listener_ = UniqueFd(::socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in any{};
    any.sin_family = AF_INET;
    any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    KVF_CHECK(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&any), sizeof any) == 0);
    KVF_CHECK(::listen(listener_.get(), 16) == 0);
    socklen_t length = sizeof any;
    KVF_CHECK(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&any), &length) == 0);
    address_ = "127.0.0.1:" + std::to_string(ntohs(any.sin_port));
    accepting_ = std::thread([this] { accept_all(); });
  }
  ~FlippingRelay() {
    over_.store(true);
    accepting_.join();
    for (std::thread& thread : threads_) thread.join();
  }
  const std::string& address() const { return address_; }
  size_t flips() const { return flips_.load(); }
  void set_flipping(bool flipping) { flipping_.store(flipping); }

 private:
  void accept_all() {
    pollfd wanted{listener_.get(), POLLIN, 0};
    while (!over_.load()) {
      if (::poll(&wanted, 1, 20) <= 0) continue;
      const int reader = ::accept(listener_.get(), nullptr, nullptr);
      if (reader >= 0) threads_.emplace_back([this, reader] { relay(UniqueFd(reader)); });
    }
  }
  void relay(UniqueFd reader) {
    const UniqueFd owner(::socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(owner_.port);
    ::inet_pton(AF_INET, owner_.host.c_str(), &to.sin_addr);
    if (::connect(owner.get(), reinterpret_cast<sockaddr*>(&to), sizeof to) != 0) return;
    pollfd wanted[2] = {{reader.get(), POLLIN, 0}, {owner.get(), POLLIN, 0}};
    while (!over_.load()) {
      if (::poll(wanted, 2, 20) <= 0) continue;
      for (int side = 0; side < 2; ++side)
        if (wanted[side].revents != 0 && !pass(wanted[side].fd, wanted[1 - side].fd, side == 1)) return;
    }
  }
  bool pass(int from, int to, bool may_flip) {
    char bytes[65536];
    const ssize_t count = ::recv(from, bytes, sizeof bytes, 0);
    if (count <= 0) return false;
    if (may_flip && flipping_.load()) {
      const std::string run(256, static_cast<char>(kMark));
      const auto found = std::search(bytes, bytes + count, run.begin(), run.end());
      if (found != bytes + count) {
        found[128] = static_cast<char>(found[128] ^ 4);
        flips_.fetch_add(1);
      }
    }
    for (ssize_t sent = 0; sent < count;) {
      const ssize_t part = ::send(to, bytes + sent, static_cast<size_t>(count - sent), MSG_NOSIGNAL);
      if (part <= 0) return false;
      sent += part;
    }
    return true;
  }

  const Address owner_;
  UniqueFd listener_;
  std::string address_;
  std::atomic<bool> over_{false};
  std::atomic<bool> flipping_{true};
  std::atomic<size_t> flips_{0};
  std::vector<std::thread> threads_;
  std::thread accepting_;
};

ParcelReadRequest request_of(Rank& reader, const std::string& address, const std::string& id,
                             std::vector<uint32_t> blocks) {
  ParcelReadRequest request;
  request.transfer_id = id;
  request.owners = {must(reader.engine->peer(address))};
  request.group_instance_id = "decoder";
  request.fingerprint = "model";
  request.end_token = static_cast<uint32_t>(blocks.size() * 16);
  request.blocks = {{0, std::move(blocks)}};
  return request;
}

class ParcelDigest : public ::testing::TestWithParam<MemoryKind> {};

TEST_P(ParcelDigest, ABitThatTurnsOnTheWayIsFoundByTheReader) {
  const auto device = make_device(GetParam());
  Rank owner({"owner", {"tcp"}, nullptr, device}, 1);
  Rank reader({"reader", {"tcp"}, nullptr, device}, 2);
  owner.cache.store(std::vector<std::byte>(owner.cache.size(), kMark));
  FlippingRelay relay(owner.engine->address());
  // The first read takes a ticket, those behind it one stream.
  for (int i = 0; i < 3; ++i) {
    const size_t before = relay.flips();
    const std::string id = "with" + std::to_string(i);
    ASSERT_TRUE(owner.parcels->publish({id, {{0, {3, 4}}}, 32, "model", std::chrono::seconds(60), true}).ok());
    const ParcelReadOutcome outcome =
        must(reader.parcels->read(request_of(reader, relay.address(), id, {8, 9}))).wait();
    ASSERT_GT(relay.flips(), before);
    EXPECT_EQ(outcome.state, ReadState::stale);
    EXPECT_NE(outcome.status.error().message.find("digest"), std::string::npos) << outcome.status.error().message;
  }
  // Whoever asks for no digest is told nothing: this is what it is for.
  ASSERT_TRUE(owner.parcels->publish({"without", {{0, {3, 4}}}, 32, "model", std::chrono::seconds(60), false}).ok());
  EXPECT_EQ(must(reader.parcels->read(request_of(reader, relay.address(), "without", {8, 9}))).wait().state,
            ReadState::accepted);
  EXPECT_FALSE(reader.block(8) == owner.block(3) && reader.block(9) == owner.block(4));
  relay.set_flipping(false);
  ASSERT_TRUE(owner.parcels->publish({"whole", {{0, {3, 4}}}, 32, "model", std::chrono::seconds(60), true}).ok());
  EXPECT_EQ(must(reader.parcels->read(request_of(reader, relay.address(), "whole", {8, 9}))).wait().state,
            ReadState::accepted);
}

TEST_P(ParcelDigest, ABlockThatChangesWhileItIsReadOneSidedIsFoundByTheOwner) {
  if (kThreadsSanitized) GTEST_SKIP() << kRacesOnPurpose;
  const auto device = make_device(GetParam());
  for (const bool changes : {true, false}) {
    const auto hub = std::make_shared<loopback::Hub>(std::chrono::milliseconds(2));  // between two spans
    Rank owner({"owner", {"loopback"}, hub, device}, 1);
    Rank reader({"reader", {"loopback"}, hub, nullptr}, 2);
    std::vector<uint32_t> blocks;
    for (uint32_t i = 0; i < 60; i += 2) blocks.push_back(i);
    const size_t last = ((kLayers - 1) * kBlocks + blocks.back()) * kPage;
    const std::vector<std::byte> untouched = pattern(reader.cache.size(), 2);
    bool in_the_middle = false;
    for (int attempt = 0; attempt < 20 && !in_the_middle; ++attempt) {
      const std::string id = "t" + std::to_string(attempt);
      reader.cache.store(untouched);
      ASSERT_TRUE(owner.parcels->publish({id, {{0, blocks}}, 480, "model", std::chrono::seconds(60), true}).ok());
      const std::vector<std::byte> first = owner.block(0);
      const ParcelReading reading = must(reader.parcels->read(request_of(reader, owner.engine->address(), id, blocks)));
      ASSERT_TRUE(eventually([&] { return std::equal(first.begin(), first.begin() + 64, reader.cache.base()); }));
      if (changes) {
        std::vector<std::byte> bytes = owner.cache.load();
        bytes[0] ^= std::byte{1};
        bytes[last] ^= std::byte{1};
        owner.cache.store(bytes);
      }
      // The first span has landed, the last has not: a change of both is a change of what the reader has or of what it
      // gets, whenever the owner computes its own digest. On a busy machine this thread may come too late for that.
      in_the_middle = peek(reader.cache.base() + last) == untouched[last] || !changes;
      const ParcelReadOutcome outcome = reading.wait();
      if (!in_the_middle) continue;
      EXPECT_EQ(outcome.state, changes ? ReadState::stale : ReadState::accepted);
      if (changes) {
        EXPECT_NE(outcome.status.error().message.find("digest"), std::string::npos);
      }
    }
    EXPECT_TRUE(in_the_middle) << "no change came in the middle of a read";
  }
}

INSTANTIATE_TEST_SUITE_P(All, ParcelDigest, ::testing::Values(MemoryKind::host, MemoryKind::fake, MemoryKind::cuda),
                         [](const auto& tested) { return std::string(to_string(tested.param)); });

}  // namespace
}  // namespace kvferry::test
