#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "engine/fabric/plugin/library.h"
#include "engine/fabric/plugin/node.h"
#include "test/conformance/plugin_cases.h"
#include "test/support/engines.h"
#include "test/support/eventually.h"

// The plug-ins' own promises, which the engine builds on and never tries: what a key does not cover is refused, and
// what was taken back; a connection that is ended carries nothing any more. On devices (test/rdma_vm), and over
// libfabric's tcp, where the owner's CPU looks at keys. UCX without a device looks at none.

namespace kvferry::test {
namespace {

using plugin::Why;

// One opened fabric, and what it has told.
class Side {
 public:
  Side(const kvf_fabric_table& table, const PluginCase& tested, uint64_t client) : table_(table) {
    const std::string setting = transports_setting(tested.fabric);
    const std::vector<kvf_setting> settings = {{setting.c_str(), tested.transports}};
    const kvf_host host = {this,
                           [](void* self, uint64_t operation, int32_t result, const char* why) {
                             static_cast<Side*>(self)->ended_[operation] = result;
                             if (result != KVF_OK) static_cast<Side*>(self)->failures_.push_back(why);
                           },
                           [](void* self, uint64_t, const char* why) {
                             static_cast<Side*>(self)->lost_ = why;
                             static_cast<Side*>(self)->failures_.push_back(why);
                           },
                           [](void* self, uint64_t) { return int32_t{static_cast<Side*>(self)->admits_}; }};
    Why why;
    const std::string at = rdma_host().empty() ? "127.0.0.1" : rdma_host();
    const kvf_open_params params = {settings.data(), settings.size(), client, at.c_str()};
    EXPECT_EQ(table_.open(&host, &params, &fabric_, &facts_, why.text()), KVF_OK) << why.str();
  }
  ~Side() {
    if (fabric_ != nullptr) table_.close(fabric_);
  }
  Side(const Side&) = delete;
  Side& operator=(const Side&) = delete;

  kvf_fabric* fabric() const { return fabric_; }
  bool enforces_keys() const { return facts_.enforces_keys != 0; }
  void progress() { table_.progress(fabric_); }
  void forget_loss() {
    lost_.clear();
    failures_.clear();
  }
  // Why operations have ended, and the connection, since the last forget_loss(): the first is the cause.
  const std::vector<std::string>& failures() const { return failures_; }
  void admit(bool yes) { admits_ = yes; }
  const std::map<uint64_t, int32_t>& ended() const { return ended_; }

  int32_t begin(const std::function<int32_t(uint64_t operation, kvf_text why)>& post) {
    Why why;
    return post(next_++, why.text());
  }
  // The result of what `post` begins, as soon as it has one, or the connection is lost.
  int32_t result_of(const std::function<int32_t(uint64_t operation, kvf_text why)>& post,
                    const std::function<void()>& meanwhile) {
    const uint64_t operation = next_++;
    Why why;
    const int32_t began = post(operation, why.text());
    if (began != KVF_PENDING) return began;
    const bool over = eventually([&] {
      progress();
      meanwhile();
      return ended_.count(operation) > 0 || !lost_.empty();
    });
    EXPECT_TRUE(over) << "the operation does not end";
    if (!over) return KVF_PENDING;
    return ended_.count(operation) > 0 ? ended_[operation] : KVF_LOST;
  }

 private:
  const kvf_fabric_table& table_;
  kvf_fabric* fabric_ = nullptr;
  kvf_facts facts_{};
  std::map<uint64_t, int32_t> ended_;
  std::string lost_;
  std::vector<std::string> failures_;
  bool admits_ = true;
  uint64_t next_ = 1;
};

class Keys : public ::testing::TestWithParam<PluginCase> {
 protected:
  static constexpr size_t kBytes = 65536;
  static constexpr uint64_t kClient = 2;
  void SetUp() override {
    if (const std::string why = why_no_fabric(GetParam().fabric); !why.empty()) GTEST_SKIP() << why;
    library_ = must(plugin::Library::load(GetParam().fabric, ""));
    owner_ = std::make_unique<Side>(table(), GetParam(), 1);
    initiator_ = std::make_unique<Side>(table(), GetParam(), kClient);
    ASSERT_TRUE(owner_->fabric() != nullptr && initiator_->fabric() != nullptr);
    ASSERT_EQ(owner_->enforces_keys(), has_rdma_device());
    Why why;
    char address[128];
    ASSERT_EQ(table().listen(owner_->fabric(), {address, sizeof address}, why.text()), KVF_OK) << why.str();
    address_ = address;
    // Two of them side by side in one allocation: what is outside of the one is memory all the same.
    theirs_.assign(2 * kBytes, std::byte{7});
    const kvf_range range{theirs_.data(), kBytes, KVF_HOST, -1, -1, 0};
    ASSERT_EQ(table().map(owner_->fabric(), &range, &memory_, why.text()), KVF_OK) << why.str();
    char packed[4096];
    size_t size = sizeof packed;
    ASSERT_EQ(table().pack_key(owner_->fabric(), memory_, packed, &size, why.text()), KVF_OK) << why.str();
    packed_.assign(packed, size);
    ASSERT_NO_FATAL_FAILURE(connect());
  }
  void TearDown() override {
    if (!initiator_) return;
    disconnect();
    if (memory_ != nullptr) table().unmap(owner_->fabric(), memory_);
  }
  const kvf_fabric_table& table() const { return library_->table(); }

  void connect() {
    Why why;
    initiator_->forget_loss();
    ASSERT_EQ(table().connect(initiator_->fabric(), address_.c_str(), 1, &endpoint_, why.text()), KVF_OK) << why.str();
    ASSERT_EQ(initiator_->result_of(
                  [&](uint64_t operation, kvf_text text) { return table().flush(endpoint_, operation, text); },
                  [&] { owner_->progress(); }),
              KVF_OK);
    ASSERT_EQ(table().import_key(endpoint_, packed_.data(), packed_.size(), &key_, why.text()), KVF_OK) << why.str();
  }
  void disconnect() {
    if (key_ != nullptr) table().drop_key(std::exchange(key_, nullptr));
    if (endpoint_ != nullptr) {
      EXPECT_EQ(table().disconnect(std::exchange(endpoint_, nullptr), 5000), KVF_OK);
    }
  }
  // The owner's fabric makes no progress meanwhile, unless asked to, or where it moves the bytes.
  int32_t get(uint64_t offset, size_t length, bool owner_runs = false) {
    ours_.assign(length, std::byte{1});
    const auto remote = reinterpret_cast<uint64_t>(theirs_.data()) + offset;
    return initiator_->result_of(
        [&](uint64_t operation, kvf_text why) {
          return table().get(endpoint_, ours_.data(), nullptr, remote, key_, length, operation, why);
        },
        [&] {
          if (owner_runs || !has_rdma_device()) owner_->progress();
        });
  }

  int32_t put(uint64_t offset, size_t length) {
    ours_.assign(length, std::byte{1});
    const auto remote = reinterpret_cast<uint64_t>(theirs_.data()) + offset;
    const auto owner_runs = [&] { owner_->progress(); };
    const int32_t result = initiator_->result_of(
        [&](uint64_t operation, kvf_text why) {
          return table().put(endpoint_, ours_.data(), nullptr, remote, key_, length, operation, why);
        },
        owner_runs);
    if (result != KVF_OK) return result;
    return initiator_->result_of(
        [&](uint64_t operation, kvf_text why) { return table().flush(endpoint_, operation, why); }, owner_runs);
  }
  // Where the bytes that a device checks lie in a packed key: UCX's begins with a map of devices, the memory's kind and
  // a length.
  static size_t place_of_key() { return std::string_view(GetParam().fabric) == "ucx" ? 10 : 0; }

  std::shared_ptr<const plugin::Library> library_;
  std::unique_ptr<Side> owner_;
  std::unique_ptr<Side> initiator_;
  std::string address_;
  std::vector<std::byte> theirs_;
  std::vector<std::byte> ours_;
  kvf_memory* memory_ = nullptr;
  std::string packed_;
  kvf_endpoint* endpoint_ = nullptr;
  kvf_key* key_ = nullptr;
};

TEST_P(Keys, ReachMemoryWithoutTheOwnersProgress) {
  if (!has_rdma_device()) GTEST_SKIP() << "no RDMA device";
  ASSERT_EQ(get(0, kBytes), KVF_OK);
  EXPECT_EQ(ours_, std::vector<std::byte>(kBytes, std::byte{7}));
}

// The connection is the price, and the next one serves again.
TEST_P(Keys, ReachNothingBesideTheirRegion) {
  for (const auto& [offset, length] : {std::pair<uint64_t, size_t>{kBytes, 4096}, {kBytes - 100, 101}}) {
    EXPECT_EQ(get(offset, length, true), KVF_LOST);
    EXPECT_EQ(std::count(ours_.begin(), ours_.end(), std::byte{7}), 0) << "bytes came all the same";
    disconnect();
    ASSERT_NO_FATAL_FAILURE(connect());
    ASSERT_EQ(get(kBytes - 100, 100), KVF_OK);
    EXPECT_EQ(ours_, std::vector<std::byte>(100, std::byte{7}));
  }
}

TEST_P(Keys, ReachNothingThatWasTakenBack) {
  ASSERT_EQ(get(0, 4096), KVF_OK);
  table().unmap(owner_->fabric(), std::exchange(memory_, nullptr));
  EXPECT_EQ(get(0, 4096, true), KVF_LOST);
  EXPECT_EQ(std::count(ours_.begin(), ours_.end(), std::byte{7}), 0) << "bytes came all the same";
}

// Bits of a valid key changed, as by one who guesses.
TEST_P(Keys, ThatAreWrongReachNothingAndTheErrorNamesTheOtherSide) {
  const std::string right = packed_;
  for (const Operation operation : {Operation::read, Operation::write}) {
    disconnect();
    packed_[place_of_key()] = static_cast<char>(right[place_of_key()] ^ 0x55);
    ASSERT_NO_FATAL_FAILURE(connect());
    EXPECT_EQ(operation == Operation::read ? get(0, 4096, true) : put(0, 4096), KVF_LOST);
    ASSERT_FALSE(initiator_->failures().empty());
    // libfabric's tcp is told no more than that the connection is gone.
    if (has_rdma_device()) {
      EXPECT_THAT(initiator_->failures()[0], ::testing::HasSubstr("remote"));
    }
    EXPECT_EQ(ours_, std::vector<std::byte>(4096, std::byte{1})) << "bytes came all the same";
    EXPECT_EQ(theirs_, std::vector<std::byte>(2 * kBytes, std::byte{7})) << "the owner's memory is not as it was";
  }
  disconnect();
  packed_ = right;
  ASSERT_NO_FATAL_FAILURE(connect());
  EXPECT_EQ(get(0, 4096), KVF_OK);
}

// I8: not when they have left, and not when the last of them is done.
TEST_P(Keys, WriteWhatAFlushWaitsFor) {
  constexpr size_t kPiece = 4096;
  std::vector<std::byte> source(kBytes, std::byte{9});
  for (size_t at = 0; at < kBytes; at += kPiece) {
    const int32_t result = initiator_->begin([&](uint64_t operation, kvf_text why) {
      return table().put(endpoint_, source.data() + at, nullptr, reinterpret_cast<uint64_t>(theirs_.data()) + at, key_,
                         kPiece, operation, why);
    });
    ASSERT_TRUE(result == KVF_PENDING || result == KVF_OK) << result;
  }
  EXPECT_EQ(
      initiator_->result_of([&](uint64_t operation, kvf_text why) { return table().flush(endpoint_, operation, why); },
                            [&] { owner_->progress(); }),
      KVF_OK);
  EXPECT_EQ(static_cast<size_t>(std::count(theirs_.begin(), theirs_.end(), std::byte{9})), kBytes);
}

// UCX takes nothing back.
TEST_P(Keys, GiveBackWhatHasNotBegun) {
  constexpr size_t kGets = 1000;  // more than are in flight at once
  constexpr size_t kEach = 32;
  ours_.assign(kGets * kEach, std::byte{1});
  std::vector<uint64_t> posted;
  for (size_t i = 0; i < kGets; ++i) {
    const int32_t result = initiator_->begin([&](uint64_t operation, kvf_text why) {
      posted.push_back(operation);
      return table().get(endpoint_, ours_.data() + i * kEach, nullptr, reinterpret_cast<uint64_t>(theirs_.data()), key_,
                         kEach, operation, why);
    });
    ASSERT_EQ(result, KVF_PENDING);
  }
  table().cancel(endpoint_, posted.data(), posted.size());
  ASSERT_TRUE(eventually([&] {
    initiator_->progress();
    owner_->progress();
    return std::all_of(posted.begin(), posted.end(),
                       [&](uint64_t each) { return initiator_->ended().count(each) > 0; });
  }));
  size_t taken_back = 0;
  for (size_t i = 0; i < kGets; ++i) {
    const int32_t result = initiator_->ended().at(posted[i]);
    EXPECT_TRUE(result == KVF_OK || result == KVF_FAILED) << result;
    EXPECT_EQ(ours_[i * kEach], result == KVF_OK ? std::byte{7} : std::byte{1}) << i;
    taken_back += result == KVF_FAILED ? 1 : 0;
  }
  if (std::string_view(GetParam().fabric) == "ofi") {
    EXPECT_GT(taken_back, kGets / 2);
  }
  EXPECT_EQ(get(0, 4096), KVF_OK) << "the connection is not the price";
}

// I4: a write that was cancelled is not taken back because its connection broke: bytes of it may be on their way.
TEST_P(Keys, DoNotGiveBackWhatWasLost) {
  constexpr size_t kPuts = 200;  // more than sockets hold, and all of them given to the library
  std::vector<std::byte> source(kBytes, std::byte{9});
  std::vector<uint64_t> posted;
  for (size_t i = 0; i < kPuts; ++i) {
    uint64_t number = 0;
    const int32_t result = initiator_->begin([&](uint64_t operation, kvf_text why) {
      number = operation;
      return table().put(endpoint_, source.data(), nullptr, reinterpret_cast<uint64_t>(theirs_.data()), key_, kBytes,
                         operation, why);
    });
    ASSERT_TRUE(result == KVF_PENDING || result == KVF_OK) << result;
    if (result == KVF_PENDING) posted.push_back(number);
  }
  table().cancel(endpoint_, posted.data(), posted.size());
  ASSERT_EQ(table().fence(owner_->fabric(), kClient), KVF_OK);
  EXPECT_TRUE(eventually([&] {
    owner_->progress();
    initiator_->progress();
    return std::all_of(posted.begin(), posted.end(),
                       [&](uint64_t each) { return initiator_->ended().count(each) > 0; });
  }));
  disconnect();
  size_t lost = 0;
  for (const uint64_t each : posted) {
    EXPECT_NE(initiator_->ended().at(each), KVF_FAILED);
    lost += initiator_->ended().at(each) == KVF_LOST ? 1u : 0u;
  }
  if (!has_rdma_device()) {  // a device that is software has moved them by then
    EXPECT_GT(lost, 0u);
  }
}

// I4: what an owner has fenced off does not come back by itself, and does not wait for ever either.
TEST_P(Keys, ReachNothingBehindAFence) {
  ASSERT_EQ(get(0, 4096), KVF_OK);
  EXPECT_EQ(table().fence(owner_->fabric(), kClient), KVF_OK);
  // The initiator may have heard of it, or not.
  for (int turn = 0; turn < 100; ++turn) owner_->progress(), initiator_->progress();
  EXPECT_EQ(get(0, 4096, true), KVF_LOST);
  EXPECT_EQ(std::count(ours_.begin(), ours_.end(), std::byte{7}), 0) << "bytes came all the same";
}

TEST_P(Keys, AreOfNoUseToAClientThatIsNotAdmitted) {
  disconnect();
  owner_->admit(false);
  Why why;
  ASSERT_EQ(table().connect(initiator_->fabric(), address_.c_str(), 1, &endpoint_, why.text()), KVF_OK) << why.str();
  const int32_t result = initiator_->result_of(
      [&](uint64_t operation, kvf_text text) { return table().flush(endpoint_, operation, text); },
      [&] { owner_->progress(); });
  EXPECT_EQ(result, KVF_LOST);
}

INSTANTIATE_TEST_SUITE_P(All, Keys,
                         ::testing::ValuesIn(has_rdma_device() ? plugin_cases()
                                                               : std::vector<PluginCase>{{"ofi", "tcp"}}),
                         [](const ::testing::TestParamInfo<PluginCase>& tested) {
                           return tested.param.fabric + name_of_transports(tested.param.transports);
                         });

}  // namespace
}  // namespace kvferry::test
