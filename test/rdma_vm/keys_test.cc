#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "engine/fabric/plugin/library.h"
#include "engine/fabric/plugin/node.h"
#include "test/conformance/ucx_transports.h"
#include "test/support/engines.h"
#include "test/support/eventually.h"

// The plug-in's own promises, which the engine builds on and never tries: a device refuses what a key does not cover,
// and what was taken back.

namespace kvferry::test {
namespace {

using plugin::Why;

// One opened fabric, and what it has told.
class Side {
 public:
  Side(const kvf_fabric_table& table, uint64_t client) : table_(table) {
    const std::vector<kvf_setting> settings = {{"TLS", ucx_transports()[0]}};
    const kvf_host host = {this,
                           [](void* self, uint64_t operation, int32_t result, const char*) {
                             static_cast<Side*>(self)->ended_[operation] = result;
                           },
                           [](void*, uint64_t, const char*) {}, [](void*, uint64_t) { return int32_t{1}; }};
    Why why;
    const kvf_open_params params = {settings.data(), settings.size(), client};
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

  // The result of what `post` begins, while `meanwhile` runs.
  int32_t result_of(const std::function<int32_t(uint64_t operation, kvf_text why)>& post,
                    const std::function<void()>& meanwhile) {
    const uint64_t operation = next_++;
    Why why;
    const int32_t began = post(operation, why.text());
    if (began != KVF_PENDING) return began;
    const bool over = eventually([&] {
      progress();
      meanwhile();
      return ended_.count(operation) > 0;
    });
    EXPECT_TRUE(over) << "the operation does not end";
    return over ? ended_[operation] : KVF_PENDING;
  }

 private:
  const kvf_fabric_table& table_;
  kvf_fabric* fabric_ = nullptr;
  kvf_facts facts_{};
  std::map<uint64_t, int32_t> ended_;
  uint64_t next_ = 1;
};

class RdmaKeys : public ::testing::Test {
 protected:
  static constexpr size_t kBytes = 65536;
  void SetUp() override {
    if (!has_rdma_device()) GTEST_SKIP() << "KVFERRY_TEST_UCX_TLS names no transport of a device";
    library_ = must(plugin::Library::load("ucx", ""));
    owner_ = std::make_unique<Side>(table(), 1);
    initiator_ = std::make_unique<Side>(table(), 2);
    ASSERT_TRUE(owner_->fabric() != nullptr && initiator_->fabric() != nullptr);
    ASSERT_TRUE(owner_->enforces_keys());
    Why why;
    char address[128];
    ASSERT_EQ(table().listen(owner_->fabric(), rdma_host().c_str(), {address, sizeof address}, why.text()), KVF_OK)
        << why.str();
    address_ = address;
    // Two of them side by side in one allocation: what is outside of the one is memory all the same.
    theirs_.assign(2 * kBytes, std::byte{7});
    ASSERT_EQ(table().map(owner_->fabric(), theirs_.data(), kBytes, &memory_, why.text()), KVF_OK) << why.str();
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
  // The owner's fabric makes no progress meanwhile, unless asked to.
  int32_t get(uint64_t offset, size_t length, bool owner_runs = false) {
    ours_.assign(length, std::byte{1});
    const auto remote = reinterpret_cast<uint64_t>(theirs_.data()) + offset;
    return initiator_->result_of(
        [&](uint64_t operation, kvf_text why) {
          return table().get(endpoint_, ours_.data(), nullptr, remote, key_, length, operation, why);
        },
        [&] {
          if (owner_runs) owner_->progress();
        });
  }

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

TEST_F(RdmaKeys, ReachMemoryWithoutTheOwnersProgress) {
  ASSERT_EQ(get(0, kBytes), KVF_OK);
  EXPECT_EQ(ours_, std::vector<std::byte>(kBytes, std::byte{7}));
}

// The connection is the price, and the next one serves again.
TEST_F(RdmaKeys, ReachNothingBesideTheirRegion) {
  for (const auto& [offset, length] : {std::pair<uint64_t, size_t>{kBytes, 4096}, {kBytes - 100, 101}}) {
    EXPECT_EQ(get(offset, length, true), KVF_LOST);
    EXPECT_EQ(std::count(ours_.begin(), ours_.end(), std::byte{7}), 0) << "bytes came all the same";
    disconnect();
    ASSERT_NO_FATAL_FAILURE(connect());
    ASSERT_EQ(get(kBytes - 100, 100), KVF_OK);
    EXPECT_EQ(ours_, std::vector<std::byte>(100, std::byte{7}));
  }
}

TEST_F(RdmaKeys, ReachNothingThatWasTakenBack) {
  ASSERT_EQ(get(0, 4096), KVF_OK);
  table().unmap(owner_->fabric(), std::exchange(memory_, nullptr));
  EXPECT_EQ(get(0, 4096, true), KVF_LOST);
  EXPECT_EQ(std::count(ours_.begin(), ours_.end(), std::byte{7}), 0) << "bytes came all the same";
}

}  // namespace
}  // namespace kvferry::test
