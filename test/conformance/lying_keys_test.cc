#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "test/conformance/plugin_config.h"
#include "test/support/raw_peer.h"

// An owner whose keys are none. It is an honest engine, behind somebody who changes the keys in its region table.

namespace kvferry::test {
namespace {

using std::chrono::seconds;

constexpr size_t kBytes = 65536;

class KeyChanger {
 public:
  using Change = std::function<std::string(const std::string&)>;
  KeyChanger(const std::string& owner, Change change) : change_(std::move(change)) {
    relay_ = std::thread([this, owner] {
      RawConnection initiator(listener_.accept());
      RawConnection real = RawConnection::dial(owner);
      std::thread up([&] {
        for (std::string byte = initiator.receive(1); !byte.empty(); byte = initiator.receive(1)) real.send(byte);
        real.shut();
      });
      while (true) {
        proto::Frame frame = real.receive_frame();
        if (frame.body_case() == proto::Frame::BODY_NOT_SET) break;
        if (frame.has_regions())
          for (proto::Region& region : *frame.mutable_regions()->mutable_added())
            for (proto::FabricOffer& key : *region.mutable_keys()) key.set_address(change_(key.address()));
        initiator.send_frame(frame);
      }
      initiator.shut();
      up.join();
    });
  }
  ~KeyChanger() { relay_.join(); }  // when the engines have left
  const std::string& address() const { return listener_.address(); }

 private:
  const Change change_;
  RawListener listener_;
  std::thread relay_;
};

class LyingKeys : public ::testing::TestWithParam<PluginCase> {
 protected:
  void SetUp() override {
    if (has_rdma_device()) GTEST_SKIP() << "of what checks keys on this machine, Keys.* tell more";
    if (const std::string why = why_no_fabric(GetParam().fabric); !why.empty()) GTEST_SKIP() << why;
  }
  // A read of a region whose key is `change` of what its owner has told.
  Outcome read_with(const KeyChanger::Change& change) {
    const auto owner = must(Engine::create(config_of("owner")));
    std::vector<std::byte> theirs(kBytes, std::byte{7});
    const Region region = must(owner->register_memory(theirs.data(), kBytes, MemoryKind::host, kRemoteRead));
    const KeyChanger between(owner->address(), change);
    const auto initiator = must(Engine::create(config_of("initiator")));
    ours_.assign(kBytes, std::byte{0});
    const Region landing = must(initiator->register_memory(ours_.data(), kBytes, MemoryKind::host, kPrivate));
    TransferRequest request;
    request.peer = must(initiator->peer(between.address()));
    request.operation = Operation::read;
    request.pairs = {{ours_.data(), region.id(), 0, kBytes}};
    request.timeout = seconds(20);
    return initiator->transfer(request);
  }
  static EngineConfig config_of(const std::string& name) {
    EngineConfig config = plugin_config(GetParam());
    config.engine_id = name;
    return config;
  }
  std::vector<std::byte> ours_;
};

TEST_P(LyingKeys, ThatAreToldRightServe) {
  const Outcome outcome = read_with([](const std::string& key) { return key; });
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
  EXPECT_EQ(ours_, std::vector<std::byte>(kBytes, std::byte{7}));
}

TEST_P(LyingKeys, ThatAreEmptyAreRefused) {
  const Outcome outcome = read_with([](const std::string&) { return std::string(); });
  ASSERT_FALSE(outcome.status.ok());
  EXPECT_THAT(outcome.status.error().to_string(), ::testing::HasSubstr("cannot be used"));
  EXPECT_EQ(ours_, std::vector<std::byte>(kBytes));
}

// Whatever its library makes of them: the process lives, and no transfer is called done that brought other bytes.
TEST_P(LyingKeys, ThatAreNoneDoNoHarm) {
  std::mt19937 random(5);
  std::string noise(200, '\0');
  for (char& c : noise) c = static_cast<char>(random());
  const std::vector<std::pair<const char*, KeyChanger::Change>> lies = {
      {"cut to a byte", [](const std::string& key) { return key.substr(0, 1); }},
      {"cut in half", [](const std::string& key) { return key.substr(0, key.size() / 2); }},
      {"without its end", [](const std::string& key) { return key.substr(0, key.size() - 1); }},
      {"zeros", [](const std::string& key) { return std::string(key.size(), '\0'); }},
      {"ones", [](const std::string& key) { return std::string(key.size(), '\xff'); }},
      {"noise", [&](const std::string&) { return noise; }},
  };
  for (const auto& [name, lie] : lies) {
    SCOPED_TRACE(name);
    const Outcome outcome = read_with(lie);
    std::printf("%s: %s\n", name, outcome.status.ok() ? "served" : outcome.status.error().to_string().c_str());
    EXPECT_EQ(ours_, std::vector<std::byte>(kBytes, outcome.status.ok() ? std::byte{7} : std::byte{0}));
    if (GetParam().fabric == std::string_view("ucx")) continue;  // without a device it looks at none
    EXPECT_FALSE(outcome.status.ok());
    const bool any_length = name == std::string_view("zeros") || name == std::string_view("ones");
    const std::string why = outcome.status.ok() ? "" : outcome.status.error().to_string();
    EXPECT_TRUE(any_length || why.find("not a key of this fabric") != std::string::npos) << why;
  }
}

INSTANTIATE_TEST_SUITE_P(All, LyingKeys, ::testing::Values(PluginCase{"ucx", "tcp,self"}, PluginCase{"ofi", "tcp"}),
                         [](const ::testing::TestParamInfo<PluginCase>& tested) {
                           return tested.param.fabric + name_of_transports(tested.param.transports);
                         });

}  // namespace
}  // namespace kvferry::test
