#include <gtest/gtest.h>

#include "test/conformance/plugin_config.h"
#include "test/support/cuda_device.h"
#include "test/support/engines.h"

// Memory of GPUs and the libraries of real plug-ins, none of which knows any where these tests run: it is registered
// all the same, and goes by the other fabrics.

namespace kvferry::test {
namespace {

class PluginWithoutGpus : public ::testing::TestWithParam<PluginCase> {
 protected:
  static constexpr size_t kBytes = 300000;
  void SetUp() override {
    if (const std::string why = why_no_fabric(GetParam().fabric); !why.empty()) GTEST_SKIP() << why;
    if (!cuda::Driver::look(cuda_driver()).ok() || fake_control() == nullptr) GTEST_SKIP() << "without the fake driver";
    device_ = make_device(MemoryKind::cuda);
  }
  std::unique_ptr<Engine> make_engine(const std::vector<std::string>& others) {
    EngineConfig config = plugin_config(GetParam());
    config.fabrics.insert(config.fabrics.end(), others.begin(), others.end());
    return must(Engine::create(config, {device_->ops()}));
  }

  std::shared_ptr<TestDevice> device_;
};

TEST_P(PluginWithoutGpus, NamesTheKindThatItRefusesAndLeavesItToTcp) {
  const auto owner = make_engine({"tcp"});
  const auto initiator = make_engine({"tcp"});
  Buffer theirs(device_, kBytes), ours(device_, kBytes), host(nullptr, kBytes);
  theirs.store(pattern(kBytes, 1));
  const Region remote = must(owner->register_memory(theirs.base(), kBytes, MemoryKind::cuda, kRemoteReadWrite));
  const Region local = must(initiator->register_memory(ours.base(), kBytes, MemoryKind::cuda, kPrivate));
  const Region local_host = must(initiator->register_memory(host.base(), kBytes, MemoryKind::host, kPrivate));
  for (const Buffer* landing : {&ours, &host}) {
    TransferRequest asked;
    asked.peer = must(initiator->peer(owner->address()));
    asked.operation = Operation::read;
    asked.pairs = {{landing->base(), remote.id(), 0, kBytes}};
    const Outcome outcome = initiator->transfer(asked);
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.error().to_string();
    EXPECT_EQ(outcome.fabric, "tcp");
    EXPECT_TRUE(landing->holds(pattern(kBytes, 1)));
  }
  for (const Engine* engine : {owner.get(), initiator.get()}) {
    const std::string described = engine->describe();
    EXPECT_NE(described.find(std::string("; not by ") + GetParam().fabric + ": "), std::string::npos) << described;
    EXPECT_NE(described.find("memory of kind cuda"), std::string::npos) << described;
  }
}

TEST_P(PluginWithoutGpus, AloneRefusesTheTransferByName) {
  const auto owner = make_engine({});
  const auto initiator = make_engine({});
  Buffer theirs(device_, kBytes), ours(device_, kBytes);
  const Region remote = must(owner->register_memory(theirs.base(), kBytes, MemoryKind::cuda, kRemoteReadWrite));
  const Region local = must(initiator->register_memory(ours.base(), kBytes, MemoryKind::cuda, kPrivate));
  TransferRequest asked;
  asked.peer = must(initiator->peer(owner->address()));
  asked.operation = Operation::read;
  asked.pairs = {{ours.base(), remote.id(), 0, kBytes}};
  const Outcome outcome = initiator->transfer(asked);
  ASSERT_FALSE(outcome.status.ok());
  const std::string why = outcome.status.error().to_string();
  EXPECT_NE(why.find(std::string(GetParam().fabric) + ": memory that one side has no key for"), std::string::npos)
      << why;
}

INSTANTIATE_TEST_SUITE_P(All, PluginWithoutGpus, ::testing::ValuesIn(plugin_cases()),
                         [](const ::testing::TestParamInfo<PluginCase>& tested) {
                           return tested.param.fabric + name_of_transports(tested.param.transports);
                         });

}  // namespace
}  // namespace kvferry::test
